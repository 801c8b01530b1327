"""Snapshots of clusters that exist nowhere."""

import numpy as np

from statepool.serve.snapshot import DecodePool, Line, PrefillPool, Snapshot

EMPTY = Line(np.zeros(0), np.zeros(1), np.array([np.inf]))


def snapshot(queue_s, held, ready=None, link_s=None, decode=((1, 1000),), lines=None, inline=False, **more):
    """A snapshot; every column that is not given is quiet."""
    count = len(queue_s)
    zeros = np.zeros(count)
    prefill = PrefillPool(
        queue_s=np.array(queue_s, dtype=float),
        busy_s=more.pop("busy_s", zeros),
        queued_tokens=more.pop("queued_tokens", zeros.astype(int)),
        queued_context=more.pop("queued_context", zeros.astype(int)),
        held=np.array(held),
        ready=np.array(held if ready is None else ready),
        after_rank=more.pop("after_rank", np.full(count, -np.inf)),
        link_s=zeros if link_s is None else np.array(link_s, dtype=float),
        stretch=more.pop("stretch", np.ones(count)),
        lines=tuple(lines or [EMPTY] * count),
    )
    batch, tokens = np.array(decode).T
    none = np.zeros(len(decode), dtype=int)
    pool = DecodePool(batch, tokens, none, none, more.pop("underway", ()))
    assert not more, more
    return Snapshot(prefill, pool)


def line(now, jobs, busy_s=0.0):
    """The line of (rank, seconds, deadline) in order of rank."""
    ahead = np.concatenate([[0.0], np.cumsum([seconds for _, seconds, _ in jobs])])
    slack = np.array([end - now - busy_s for _, _, end in jobs]) - ahead[1:]
    slack[slack < 0] = np.inf
    tightest = np.minimum.accumulate(np.append(slack, np.inf)[::-1])[::-1]
    return Line(np.array([rank for rank, _, _ in jobs], dtype=float), ahead, tightest)
