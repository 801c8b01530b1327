"""A4: how far an answer is from exact attention by our estimate of a cluster's mass and by the paper's, else alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import product
from random import Random
from typing import Any, ClassVar

import numpy as np

from bench.machine import LoadWatch
from bench.row import Row, asked
from statepool.engine.attention.wave import Segment, WaveConfig
from statepool.train.probe.judge import ASKED, engine_of, score
from statepool.train.probe.questions import KINDS
from statepool.train.probe.rivals import Rival

_LENGTH = 2048


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """A4a with one variance for each cluster (the default), A4b with one for each dimension."""
    rows = [
        Row(name, f"output error with {what}, over that with the centroid alone", "x", "lower", 0.65)
        for name, what in (("A4a", "a variance for each cluster"), ("A4b", "a variance for each dimension"))
        if asked(name, only)
    ]
    if not rows:
        return
    watch = LoadWatch()
    Errors.found.clear()
    engine = engine_of("probe", "oracle", 1.0)
    runner: Any = engine.runner
    for backend in set(runner.backends):
        backend.__class__ = Errors
    kinds = list(KINDS.values())
    texts = [kinds[i % 2](Random(f"estimate:{i}"), _LENGTH, 192, ASKED) for i in range(2 if quick else 12)]
    score("exact", engine, texts)
    found = {name: np.array(each) for name, each in Errors.found.items()}
    mean = found["mean"]
    for row in rows:
        name = {"A4a": "iso2", "A4b": "diag2"}[row.id]
        ours, rest = found[name], found[f"{name}, all"].sum() / found["mean, all"].sum()
        row.value = float(ours.sum() / mean.sum())
        row.own, row.peer, row.peer_value = f"{ours.mean():.3g}", "the paper's estimate", float(mean.mean())
        row.note = (
            f"{len(mean):,} answers of heads in the probe model, {_LENGTH:,} tokens; the same 1.8 % of the clusters "
            f"read and 23.2 % estimated, chosen as in the paper; nearer in {(ours < mean).mean():.0%}; "
            f"{rest:.2f} where all that is not read is estimated"
        )
        row.command, row.load = "python -m bench attention --only A4", watch.stop()
        yield row


class Errors(Rival):
    """Exact, so that every query is the model's own; beside it, what each estimate would have answered."""

    found: ClassVar[defaultdict[str, list[float]]] = defaultdict(list)
    wave = WaveConfig.paper(update_segment=256, estimator="diag2")

    def _row(self, query: Any, keys: Any, values: Any) -> Any:
        end, group = self.wave.indexed(keys.shape[1]), len(query) // len(keys)
        mark = (end, keys[:, end - 1].tobytes())
        if mark != getattr(self, "mark", None):
            self.mark, self.segments = (
                mark,
                [
                    Segment.build(*(np.ascontiguousarray(part[:, a:b]) for part in (keys, values)), a, self.wave)
                    for a, b in self.wave.segments(end)
                ],
            )
        out = np.empty(query.shape, np.float64)
        for kv in range(len(keys)):
            q = query[kv * group : (kv + 1) * group].astype(np.float64) * self._head_dim**-0.5
            exact, estimates = _answers(q, kv, keys[kv], values[kv], end, self.segments, self.wave)
            out[kv * group : (kv + 1) * group] = exact
            for name, answer in estimates.items():
                self.found[name] += np.linalg.norm(answer - exact, axis=1).tolist()
        return out.astype(np.float32)


def _answers(
    q: Any, kv: int, keys: Any, values: Any, end: int, segments: list[Segment], config: WaveConfig
) -> tuple[Any, dict[str, Any]]:
    """Exact attention of scaled queries [group][head_dim] over one KV head, and by each estimate, all in float64."""
    log_n = np.concatenate([s.log_size[kv] for s in segments]).astype(np.float64)
    spread = np.concatenate([s.spread[kv] for s in segments]).astype(np.float64)
    means = np.concatenate([s.means[kv] for s in segments]).astype(np.float64)
    scores = np.concatenate([_products(q, s.centroids[kv]) for s in segments], axis=1)
    some = np.isfinite(log_n)
    rank = np.where(some, (np.exp(scores) / np.exp(scores[:, some]).sum(1, keepdims=True)).sum(0), -1.0)
    read, estimated = config.budget(len(rank))
    best = np.argsort(-rank, kind="stable")
    chosen = best[:read]
    zones = {"": best[read : read + estimated], ", all": best[read : np.count_nonzero(some)]}
    seen = np.zeros(len(keys), bool)
    seen[end:] = True
    first = 0
    for s in segments:
        seen[s.start : s.start + s.pinned] = True
        for c in chosen[(chosen >= first) & (chosen < first + s.clusters)] - first:
            seen[s.start + s.order[kv, s.offsets[kv, c] : s.offsets[kv, c + 1]]] = True
        first += s.clusters
    x = q @ keys.astype(np.float64).T
    weights = np.exp(x - x.max(1, keepdims=True))
    exact = weights @ values / weights.sum(1, keepdims=True)
    diagonal = np.concatenate([_products(q**2, s.variances[kv]) for s in segments if s.variances is not None], axis=1)
    variances = {"mean": np.zeros_like(scores), "iso2": (q**2).sum(1, keepdims=True) * spread, "diag2": diagonal}
    answers = {}
    for (name, v), (more, rest) in product(variances.items(), zones.items()):
        n = log_n[rest]
        limited = np.sqrt(2 * v[:, rest] * n) - n
        estimate = scores[:, rest] + n + np.where(v[:, rest] <= 2 * n, v[:, rest] / 2, limited)
        mass = np.exp(estimate - x.max(1, keepdims=True))
        total = weights[:, seen].sum(1, keepdims=True) + mass.sum(1, keepdims=True)
        answers[name + more] = (weights[:, seen] @ values[seen] + mass @ means[rest]) / total
    return exact, answers


def _products(q: Any, tiles: Any) -> Any:
    """``q`` times every column of tiles [clusters / 16][head_dim][16]."""
    return (q @ tiles.astype(np.float64)).transpose(1, 0, 2).reshape(len(q), -1)
