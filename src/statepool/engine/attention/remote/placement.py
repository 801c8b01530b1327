"""Which attention worker holds what, and what each is to do in a step: plain functions of a batch's arrays.

Three ways to divide the KV of a model over workers (Lamina, 4.3; the third is ours):

* ``heads``: every worker has every token of some KV heads. Balanced whatever the lengths; their number must divide the
  model's KV heads, or what is left of them where some stay with the model.
* ``request``: every worker has whole requests, the next one going where the least is.
* ``sequence``: the segments of 1024 tokens of a request go round the workers, each of which answers with what it has
  seen of them, and the model worker folds the parts in the order of positions. Any number of workers, balanced for long
  contexts; the parts make its answers larger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from statepool.core.errors import InvalidConfig
from statepool.engine.attention.remote.protocol import Plan
from statepool.engine.attention.remote.share import SEGMENT
from statepool.engine.batch import Batch
from statepool.kv.layout import BLOCK_SIZE, KVLayout

__all__ = ["ByHeads", "BySpan", "Errand", "Move", "Placement", "place"]

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
Split = Literal["heads", "request", "sequence"]
SPLITS: tuple[Split, ...] = ("heads", "request", "sequence")

_NO_PARTS = np.empty((0, 2), np.int32)


@dataclass(slots=True)
class Errand:
    """What one worker does for one lane: the rows it gets queries of, those it stores, and its plan."""

    worker: int
    rows: I64
    stored: I64
    plan: Plan


@dataclass(frozen=True, slots=True)
class Move:
    """Blocks that one worker has and another needs."""

    blocks: list[int]
    source: int
    target: int


class Placement(Protocol):
    """One way to divide the KV."""

    workers: int
    shares: list[KVLayout]
    """The blocks of each worker."""

    def moves(self, batch: Batch) -> list[Move]:
        """What has to move before ``errands`` of this batch."""
        ...

    def errands(self, lane: int, batch: Batch) -> list[Errand]:
        """What the workers do for a batch; notes what they hold afterwards."""
        ...

    def query_of(self, errand: Errand, query: F32) -> F32:
        """Its part of queries ``[T, heads, head_dim]``, contiguous."""
        ...

    def keys_of(self, errand: Errand, kv: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Its part of rows ``[T, 2, kv_heads, head_dim]``, contiguous."""
        ...

    def gather(self, errands: Sequence[Errand], answers: Sequence[F32], ops: Any, out: F32) -> None:
        """Put the flat answers together to ``out [T, heads * head_dim]``."""
        ...

    def share_of(self, worker: int, blocks: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Of whole blocks ``[n, *block_shape]`` what this worker holds."""
        ...

    def owners(self, blocks: Sequence[int]) -> list[list[int]]:
        """For each worker, which of ``blocks`` to read from it; every worker all of them if each has a part."""
        ...

    def homes(self, blocks: Sequence[int]) -> list[int]:
        """The workers to write ``blocks`` to, which have them afterwards."""
        ...


def place(split: str, workers: int, layout: KVLayout, heads: int, blocks: int, here: int = 0) -> Placement:
    """The placement called ``split`` for a model of ``heads`` query heads; ``auto`` is heads if it can be, or sequence.

    The first ``here`` KV heads are no worker's.

    Raises:
        InvalidConfig: no such split, or the KV heads cannot be divided.
    """
    left = layout.kv_heads - here
    if here and (split not in ("auto", "heads") or left < 1):
        raise InvalidConfig(
            f"attention_here must be below the model's {layout.kv_heads} KV heads, with attention_split heads; got "
            f"{here}, {split}",
            param="attention_here",
        )
    if split == "auto":
        split = "sequence" if left % workers and not here else "heads"
    if split == "heads":
        if left % workers:
            raise InvalidConfig(
                f"{left} KV heads cannot be divided among {workers} attention workers; take another number, "
                "or attention_split sequence",
                param="attention_here" if here else "attention_split",
            )
        return ByHeads(workers, layout, here)
    if split not in SPLITS:
        raise InvalidConfig(
            f"attention_split must be auto, {', '.join(SPLITS)}, got {split!r}", param="attention_split"
        )
    return BySpan(workers, layout, heads, blocks, SEGMENT if split == "sequence" else None)


class ByHeads:
    """Every worker has some KV heads of every block; the first ``here`` are the model's own."""

    def __init__(self, workers: int, layout: KVLayout, here: int = 0) -> None:
        self.workers = workers
        self._first, self._of = here, layout.kv_heads
        self._each = (layout.kv_heads - here) // workers
        self.shares = [KVLayout(layout.layers, self._each, layout.head_dim, layout.dtype)] * workers

    def moves(self, batch: Batch) -> list[Move]:
        """See ``Placement``: nothing ever moves."""
        return []

    def errands(self, lane: int, batch: Batch) -> list[Errand]:
        """See ``Placement``."""
        plan = Plan(lane, batch.block_tables, batch.query_start, batch.context_len, batch.slots, _NO_PARTS)
        rows = np.arange(batch.tokens.size)
        return [Errand(worker, rows, rows, plan) for worker in range(self.workers)]

    def query_of(self, errand: Errand, query: F32) -> F32:
        """See ``Placement``."""
        rows, heads, width = query.shape
        groups = query.reshape(rows, self._of, heads // self._of, width)[:, self.heads_of(errand.worker)]
        return np.ascontiguousarray(groups).reshape(rows, -1, width)

    def keys_of(self, errand: Errand, kv: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """See ``Placement``."""
        return np.ascontiguousarray(kv[:, :, self.heads_of(errand.worker)])

    def gather(self, errands: Sequence[Errand], answers: Sequence[F32], ops: Any, out: F32) -> None:
        """See ``Placement``."""
        parts = out.reshape(len(out), self._of, -1)
        for errand, answer in zip(errands, answers, strict=True):
            parts[:, self.heads_of(errand.worker)] = answer.reshape(len(out), self._each, -1)

    def share_of(self, worker: int, blocks: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """See ``Placement``."""
        return np.ascontiguousarray(blocks[:, :, :, self.heads_of(worker)])

    def owners(self, blocks: Sequence[int]) -> list[list[int]]:
        """See ``Placement``."""
        return [list(blocks)] * self.workers

    def homes(self, blocks: Sequence[int]) -> list[int]:
        """See ``Placement``."""
        return list(range(self.workers))

    def heads_of(self, worker: int) -> slice:
        """The KV heads of a worker."""
        begin = self._first + worker * self._each
        return slice(begin, begin + self._each)


class BySpan:
    """Every worker has whole blocks: stretches of ``span`` tokens go round from a request's home, or all stay there.

    A block that several requests share may be needed by two workers; it is copied then, and forgotten where it was as
    soon as it is written again.
    """

    def __init__(self, workers: int, layout: KVLayout, heads: int, blocks: int, span: int | None) -> None:
        self.workers = workers
        self.shares = [layout] * workers
        self._pages = None if span is None else span // BLOCK_SIZE
        self._has = np.zeros((workers, blocks), bool)
        self._heads = heads
        # Of the requests of one step, by table: what one lane writes must not move the homes of the next.
        self._homes: dict[bytes, int] = {}

    def moves(self, batch: Batch) -> list[Move]:
        """See ``Placement``."""
        self._homes.clear()
        wanted: dict[tuple[int, int], list[int]] = {}
        before = batch.context_len - np.diff(batch.query_start)
        for (table, owner), tokens in zip(self._tables(batch), before.tolist(), strict=True):
            old = -(-tokens // BLOCK_SIZE)
            for block, target in zip(table[:old].tolist(), owner[:old].tolist(), strict=True):
                if self._has[:, block].any() and not self._has[target, block]:
                    source = int(self._has[:, block].argmax())
                    wanted.setdefault((source, target), []).append(block)
        for (_, target), blocks in wanted.items():
            self._has[target, blocks] = True
        return [Move(sorted(set(blocks)), source, target) for (source, target), blocks in wanted.items()]

    def errands(self, lane: int, batch: Batch) -> list[Errand]:
        """See ``Placement``."""
        found = list(self._tables(batch))
        written = batch.slots // BLOCK_SIZE
        store = np.empty(batch.slots.size, np.int64)
        for r, (_, owner) in enumerate(found):
            rows = slice(batch.query_start[r], batch.query_start[r + 1])
            store[rows] = owner[batch.positions[rows] // BLOCK_SIZE]
        self._has[:, written] = False
        self._has[store, written] = True
        errands = []
        for worker in range(self.workers):
            taken = [r for r, (_, owner) in enumerate(found) if len(owner) and (owner == worker).any()]
            if taken:
                errands.append(self._errand(worker, lane, batch, taken, found, np.flatnonzero(store == worker)))
        return errands

    def query_of(self, errand: Errand, query: F32) -> F32:
        """See ``Placement``."""
        return query[errand.rows]

    def keys_of(self, errand: Errand, kv: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """See ``Placement``."""
        return kv[errand.stored]

    def gather(self, errands: Sequence[Errand], answers: Sequence[F32], ops: Any, out: F32) -> None:
        """See ``Placement``."""
        if self._pages is None:
            for errand, answer in zip(errands, answers, strict=True):
                out[errand.rows] = answer.reshape(len(errand.rows), -1)
            return
        heads = self._heads
        rows, width = len(out), out.shape[1] // heads
        segments = 1 + max(int(errand.plan.parts[:, 1].max()) for errand in errands)
        m = np.full((rows, heads, segments), -np.inf, np.float32)
        l, acc = np.zeros_like(m), np.zeros((rows, heads, segments, width), np.float32)
        for errand, answer in zip(errands, answers, strict=True):
            at = 0
            for r, segment in errand.plan.parts.tolist():
                mine = errand.rows[errand.plan.query_start[r] : errand.plan.query_start[r + 1]]
                each = len(mine) * heads
                m[mine, :, segment] = answer[at : at + each].reshape(len(mine), heads)
                l[mine, :, segment] = answer[at + each : at + 2 * each].reshape(len(mine), heads)
                at += 2 * each
                acc[mine, :, segment] = answer[at : at + each * width].reshape(len(mine), heads, width)
                at += each * width
        ops.merge_segments(m, l, acc, out)

    def share_of(self, worker: int, blocks: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """See ``Placement``."""
        return blocks

    def owners(self, blocks: Sequence[int]) -> list[list[int]]:
        """See ``Placement``."""
        found: list[list[int]] = [[] for _ in range(self.workers)]
        for block in blocks:
            if self._has[:, block].any():
                found[int(self._has[:, block].argmax())].append(block)
        return found

    def homes(self, blocks: Sequence[int]) -> list[int]:
        """See ``Placement``."""
        home = int(self._has.sum(axis=1).argmin())
        self._has[:, list(blocks)] = False
        self._has[home, list(blocks)] = True
        return [home]

    def found(self, worker: int, blocks: Sequence[int]) -> None:
        """A worker has these from before."""
        self._has[worker, list(blocks)] = True

    def forget(self) -> None:
        """Nobody has anything."""
        self._has[:] = False

    def _tables(self, batch: Batch) -> Sequence[tuple[npt.NDArray[np.int32], I64]]:
        """The blocks of each request and the worker each belongs to."""
        load = self._has.sum(axis=1)
        found = []
        for r, context in enumerate(batch.context_len.tolist()):
            table = batch.block_tables[r, : -(-context // BLOCK_SIZE)]
            rows = int(batch.query_start[r + 1] - batch.query_start[r])
            old = table[: -(-(context - rows) // BLOCK_SIZE)]
            turn = np.arange(len(table)) // self._pages if self._pages is not None else np.zeros(len(table), np.int64)
            if not rows:
                found.append((table[:0], turn[:0]))
                continue
            home = self._homes.get(table.tobytes())
            if home is None:
                kept = [int(self._has[(w + turn[: len(old)]) % self.workers, old].sum()) for w in range(self.workers)]
                home = int(np.argmax(kept)) if any(kept) else int(load.argmin())
                self._homes[table.tobytes()] = home
                load[home] += len(table) - len(old)
            found.append((table, (home + turn) % self.workers))
        return found

    def _errand(
        self,
        worker: int,
        lane: int,
        batch: Batch,
        taken: list[int],
        found: Sequence[tuple[npt.NDArray[np.int32], I64]],
        stored: I64,
    ) -> Errand:
        spans = [np.arange(batch.query_start[r], batch.query_start[r + 1]) for r in taken]
        start = np.zeros(len(taken) + 1, np.int32)
        np.cumsum([len(span) for span in spans], out=start[1:])
        parts = _NO_PARTS
        if self._pages is not None:
            pairs = [
                (i, segment)
                for i, r in enumerate(taken)
                for segment in range(-(-len(found[r][0]) // self._pages))
                if found[r][1][segment * self._pages] == worker
            ]
            parts = np.array(pairs, np.int32).reshape(-1, 2)
        plan = Plan(lane, batch.block_tables[taken], start, batch.context_len[taken], batch.slots[stored], parts)
        return Errand(worker, np.concatenate(spans), stored, plan)
