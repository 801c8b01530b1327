"""R8, R9: the group tree against ArcticInference's suffix tree on the bundled model's texts."""

from __future__ import annotations

import importlib.util
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from bench.machine import LoadWatch
from bench.peers.setup import VENVS
from bench.rollout.data import texts
from bench.row import Row
from statepool.rollout.suffix import exact_tree, group_tree

DEPTH = 24


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """The rows that are wanted."""
    for names, rows in ((("R8",), _trees), (("R9",), _accepted)):
        if not only or any(name in only for name in names):
            watch = LoadWatch()
            for row in rows(quick):
                row.command, row.load = f"python -m bench rollout --only {names[0]}", watch.stop()
                row.versions = {"arctic-inference": "0.3.0"}
                yield row


def arctic() -> Any:
    """The peer's compiled tree; None where it is not built (``python -m bench.peers.setup rollout``)."""
    found = sorted((VENVS / "rollout").glob("_C.*.so"))
    if not found:
        return None
    spec = importlib.util.spec_from_file_location("_C", found[0])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _trees(quick: bool) -> Iterator[Row]:
    peer = arctic()
    parity = Row(
        "R8a", "drafts that differ from ArcticInference's, exact tree", "queries", "lower", 0, peer="arctic-inference"
    )
    append = Row("R8b", "seconds to append a token, group tree", "x", "lower", 0.33, peer="arctic-inference")
    draft = Row("R8c", "seconds to draft 8 tokens, group tree", "x", "lower", 0.25, peer="arctic-inference")
    memory = Row("R8d", "bytes per token, group tree", "x", "lower", 0.5, peer="arctic-inference")
    if peer is None:
        for row in (parity, append, draft, memory):
            row.note = "the peer is not built here"
            yield row
        return
    queries, differing = _parity(peer, 20_000 if quick else 1_000_000)
    parity.value, parity.own = float(differing), f"{queries} queries, paths and trees"
    yield parity
    ours, theirs = [], []
    for _ in range(3 if quick else 9):  # in turn, since the machine has other users
        ours.append(_timed(lambda: group_tree(DEPTH), lambda t, k, a: t.append(k, a), lambda t, k, _: t.draft(k, 8)))
        theirs.append(
            _timed(
                lambda: peer.SuffixTree(DEPTH),
                lambda t, k, a: t.extend_ndarray(k, a),
                lambda t, _, context: _lists(t.speculate_ndarray(context, 8, 1.0, 0.0, 0.1, False)),
            )
        )
    for row, at, unit, scale in ((append, 0, "us", 1e6), (draft, 1, "us", 1e6), (memory, 2, "bytes", 1.0)):
        mine, other = (statistics.median(each[at] for each in side) for side in (ours, theirs))
        row.value, row.own = mine / other, f"{mine * scale:.3g} {unit}"
        row.peer_value, row.peer_unit = other * scale, unit
        row.note = "groups of 16 grow 4 tokens at a time; a call from Python on both sides; medians of 9 in turn"
        yield row


def _lists(draft: Any) -> tuple[list[int], list[int], list[float]]:
    """What a caller reads of a draft; ours comes as these lists."""
    return draft.token_ids, draft.parents, draft.probs


def _parity(peer: Any, wanted: int) -> tuple[int, int]:
    rng, queries, differing = random.Random(0), 0, 0
    while queries < wanted:
        alphabet = rng.choice((2, 3, 5, 20, 200))
        mine, other, grown = exact_tree(DEPTH), peer.SuffixTree(DEPTH), {}
        for _ in range(400):
            text = rng.randrange(6)
            tokens = np.array([rng.randrange(alphabet) for _ in range(rng.randint(1, 4))], np.int32)
            mine.append(text, tokens)
            other.extend_ndarray(text, tokens)
            grown.setdefault(text, []).extend(tokens.tolist())
            for _ in range(4):
                context = np.array(grown[rng.choice(sorted(grown))][-DEPTH:], np.int32)
                for tree in (False, True):
                    found = mine.speculate(context, 8, 1.0, 0.0, 0.1, tree)
                    peers = other.speculate_ndarray(context, 8, 1.0, 0.0, 0.1, tree)
                    same = (found[0], found[1], found[3]) == (peers.token_ids, peers.parents, peers.match_len)
                    same = same or (found[0] == list(peers.token_ids) and found[1] == list(peers.parents))
                    differing += not same
                    queries += 1
    return queries, differing


def _timed(
    make: Callable[[], Any], append: Callable[..., None], draft: Callable[..., Any]
) -> tuple[float, float, float]:
    """Seconds per appended token and per draft, and bytes per token, over all groups."""
    appending = drafting = 0.0
    tokens = drafts = size = 0
    for group in texts():
        tree = make()
        length = max(len(text) for text in group)
        for at in range(0, length, 4):
            pieces = [(key, text[at : at + 4]) for key, text in enumerate(group) if len(text) > at]
            contexts = [(key, group[key][max(0, at + 4 - DEPTH) : at + 4]) for key, _ in pieces]
            began = time.perf_counter()
            for key, piece in pieces:
                append(tree, key, piece)
            between = time.perf_counter()
            for key, context in contexts:
                draft(tree, key, context)
            drafting += time.perf_counter() - between
            appending += between - began
            tokens += sum(len(piece) for _, piece in pieces)
            drafts += len(contexts)
        size += tree.bytes if hasattr(tree, "bytes") else tree.estimate_memory()
    return appending / tokens, drafting / drafts, size / tokens


def _accepted(quick: bool) -> Iterator[Row]:
    del quick
    peer = arctic()
    own, group = _walk(_Ours(siblings=0)), _walk(_Ours(siblings=15))
    row = Row("R9", "tokens a step gains from 15 finished siblings, 8 drafted (offline, as the paper counts)", "tokens",
              "higher", 1.2, group - own)  # fmt: skip
    row.own, row.peer, row.peer_value, row.peer_unit = f"{own:.2f} to {group:.2f}", "paper, linear", 0.83, "tokens"
    yield row
    row = Row("R9b", "tokens per step against ArcticInference's tree of the group, 15 siblings", "x", "higher", 1.10)
    if peer is None:
        row.note = "the peer is not built here"
    else:
        other = _walk(_Arctic(peer, 15))
        row.value, row.own, row.peer = group / other, f"{group:.2f}", "arctic-inference, group tree"
        row.peer_value, row.peer_unit = other, "tokens per step"
    yield row


class _Ours:
    def __init__(self, siblings: int) -> None:
        self.siblings = siblings

    def begin(self, others: list[np.ndarray]) -> None:
        self._tree = group_tree(DEPTH)
        for key, text in enumerate(others[: self.siblings], 1):
            self._tree.append(key, text)

    def add(self, tokens: np.ndarray) -> None:
        self._tree.append(0, tokens)

    def draft(self, text: np.ndarray) -> list[int]:
        tokens: list[int] = self._tree.draft(0, 8)[0]
        return tokens


class _Arctic(_Ours):
    def __init__(self, peer: Any, siblings: int) -> None:
        super().__init__(siblings)
        self._peer = peer

    def begin(self, others: list[np.ndarray]) -> None:
        self._tree = self._peer.SuffixTree(DEPTH)
        for key, text in enumerate(others[: self.siblings], 1):
            self._tree.extend_ndarray(key, text)

    def add(self, tokens: np.ndarray) -> None:
        self._tree.extend_ndarray(0, tokens)

    def draft(self, text: np.ndarray) -> list[int]:
        return list(self._tree.speculate_ndarray(text[-DEPTH:], 8, 1.0, 0.0, 0.1, False).token_ids)


def _walk(drafter: _Ours) -> float:
    """Tokens per step over all texts, each in turn the one that is written."""
    steps = tokens = 0
    for group in texts():
        for place, text in enumerate(group[:4]):
            drafter.begin([other for i, other in enumerate(group) if i != place])
            at = 0
            while at < len(text):
                guess = drafter.draft(text[:at]) if at else []
                held = 0
                while held < len(guess) and at + held < len(text) and guess[held] == text[at + held]:
                    held += 1
                taken = text[at : at + held + 1]
                drafter.add(taken)
                at += len(taken)
                steps, tokens = steps + 1, tokens + len(taken)
    return tokens / steps
