"""The wave index inside the engine: prompts are read exactly, what follows them by clusters.

A token at position p meets the same clusters however it got there: segments depend on the tokens before them alone
(``WaveConfig.segments``), and which of them exist depends on p alone. So chunks, batches, preemption, drafts and moves
change no bit.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from statepool.core.errors import InvalidConfig
from statepool.engine.attention import Backend
from statepool.engine.attention.wave.buffer import WaveBuffer
from statepool.engine.attention.wave.certificate import lengths
from statepool.engine.attention.wave.config import WaveConfig
from statepool.engine.attention.wave.index import Partial, SegmentView
from statepool.engine.attention.wave.segment import Segment
from statepool.engine.attention.wave.shared import SharedClusters
from statepool.engine.attention.wave.trace import SelectionTrace
from statepool.engine.batch import Batch, Context
from statepool.kv.layout import BLOCK_SIZE, tokens_of
from statepool.kv.pool import Pool
from statepool.kv.tiers import Resident, TieredBlocks
from statepool.native import kernels

F32 = npt.NDArray[np.float32]
_Key = tuple[bytes, int, int, int]

_FOLDED = 1024
"""Tokens that exact attention folds at a time; see native/attention.h."""


class WaveAttention:
    """Backend for layers that read a part of the context behind the exact tokens.

    Args:
        exact: what prompts get.
        blocks: of the KV pool.
        head_dim: of the model.
        config: settings.
        cache_bytes: most bytes of segments that no running sequence holds; the longest unused go first.
        buffer: where clusters go that are not to stay in memory; None keeps all there.
        trace: is told what every token reads.
    """

    name = "wave"

    def __init__(
        self,
        exact: Backend,
        blocks: Resident | TieredBlocks,
        head_dim: int,
        config: WaveConfig,
        cache_bytes: int,
        buffer: WaveBuffer | None = None,
        trace: SelectionTrace | None = None,
    ) -> None:
        if config.update_segment % BLOCK_SIZE:
            raise InvalidConfig(f"update_segment must be a multiple of {BLOCK_SIZE} in the engine", param="attention")
        self._exact = exact
        self._blocks = blocks
        self.buffer = buffer
        self._trace = trace
        self._head_dim = head_dim
        self._config = config
        self._scale = head_dim**-0.5
        self.segments = SegmentCache(cache_bytes)
        self.shared: SharedClusters | None = None

    def share(self, inward: Pool, outward: Pool, block_bytes: int, layers: range) -> SharedClusters:
        """Take clusters from a pool of several engines, and give it those found here; see ``SharedClusters``."""
        self.shared = SharedClusters(inward, outward, block_bytes, layers, self._config)
        return self.shared

    def attend(self, layer: int, query: F32, batch: Batch, out: F32) -> None:
        """See ``Backend.attend``."""
        sparse = self._sparse_rows(batch)
        if not sparse:
            self._exact.attend(layer, query, batch, out)
            return
        if len(sparse) < len(query):
            self._attend_exactly(layer, query, batch, out, sparse)
        self._attend_sparsely(layer, query, batch, out, sparse)

    def _sparse_rows(self, batch: Batch) -> list[tuple[int, int]]:
        """(row, sequence) of every token behind its sequence's exact ones."""
        found = []
        for r, context in enumerate(batch.contexts):
            begin, end = int(batch.query_start[r]), int(batch.query_start[r + 1])
            first = int(batch.context_len[r]) - (end - begin)
            found += [(row, r) for row in range(begin + max(context.exact - first, 0), end)]
        return found

    def _attend_exactly(self, layer: int, query: F32, batch: Batch, out: F32, sparse: list[tuple[int, int]]) -> None:
        """The rows that are not in ``sparse``: the first ones of each sequence."""
        left = np.bincount([r for _, r in sparse], minlength=len(batch.contexts)).astype(np.int32)
        counts = np.diff(batch.query_start) - left
        start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        rows = np.concatenate([np.arange(a, a + n) for a, n in zip(batch.query_start, counts, strict=False)])
        part = Batch(
            batch.tokens[rows],
            batch.positions[rows],
            batch.slots[rows],
            batch.block_tables,
            start,
            batch.context_len - left,
        )
        mixed = np.empty((len(rows), out.shape[1]), np.float32)
        self._exact.attend(layer, np.ascontiguousarray(query[rows]), part, mixed)
        out[rows] = mixed

    def _attend_sparsely(self, layer: int, query: F32, batch: Batch, out: F32, sparse: list[tuple[int, int]]) -> None:
        assert kernels is not None
        rows = [row for row, _ in sparse]
        positions = batch.positions[rows]
        queries = np.ascontiguousarray(query[rows]).reshape(len(rows), -1, self._head_dim)
        heads = queries.shape[1]
        ends = np.array([self._config.indexed(position + 1) for position in positions.tolist()])
        rest = (positions + 1 - ends).astype(np.int32)
        folds = -(-int(rest.max()) // _FOLDED)
        tables = np.zeros((len(rows), -(-int(rest.max()) // BLOCK_SIZE)), np.int32)
        for i, (_, r) in enumerate(sparse):
            blocks = batch.block_tables[r, ends[i] // BLOCK_SIZE :][: -(-int(rest[i]) // BLOCK_SIZE)]
            tables[i, : len(blocks)], tables[i, len(blocks) :] = blocks, blocks[-1]
        # Segments first (m, l, acc at 0 of axis 2), as the order of positions has it.
        m = np.full((len(rows), heads, 1 + folds), -np.inf, np.float32)
        l = np.zeros((len(rows), heads, 1 + folds), np.float32)
        acc = np.zeros((len(rows), heads, 1 + folds, self._head_dim), np.float32)
        late = [np.ascontiguousarray(a[:, :, 1:]) for a in (m, l, acc)]
        start = np.arange(len(rows) + 1, dtype=np.int32)
        pool, at, tables = self._blocks.place(layer, tables)
        kernels.attention_segments(queries, pool, at, tables, start, rest, self._scale, 0, *late)
        for whole, part in zip((m, l, acc), late, strict=True):
            whole[:, :, 1:] = part
        longest = self._longest(pool, at, tables, rest) if self._config.eps else []
        for i, (_, r) in enumerate(sparse):
            if not ends[i]:
                continue
            view = self._view(layer, batch, r, int(ends[i]))
            zones = None if self._trace is None else np.zeros((pool.shape[3], view.native.clusters), np.int32)
            if self._config.eps:
                finish = partial(_together, m[i : i + 1], l[i : i + 1], acc[i : i + 1])
                found, _, zones, _ = view.within(queries[i], self._config.eps, self._scale, finish, longest[i])
            else:
                found = view.partial(queries[i], self._scale, zones=zones)
            m[i, :, 0], l[i, :, 0], acc[i, :, 0] = found
            if self._trace is not None and zones is not None:
                self._trace.write(batch.contexts[r].name, layer, int(positions[i]), int(ends[i]), zones)
        mixed = np.empty((len(rows), out.shape[1]), np.float32)
        kernels.merge_segments(m, l, acc, mixed)
        out[rows] = mixed

    @staticmethod
    def _longest(
        pool: npt.NDArray[Any], layer: int, tables: npt.NDArray[np.int32], counts: npt.NDArray[np.int32]
    ) -> list[tuple[float, float]]:
        """Lengths that no key and no value of each row's first ``counts`` tokens exceeds."""
        found = []
        for table, count in zip(tables, counts.tolist(), strict=True):
            tokens = tokens_of(pool, layer, table[: -(-count // BLOCK_SIZE)])
            found.append(lengths(np.stack(tokens, axis=1)[:, :, :count]))
        return found

    def _view(self, layer: int, batch: Batch, r: int, end: int) -> SegmentView:
        """The segments of sequence ``r`` up to ``end``."""
        context = batch.contexts[r]
        if layer not in context.kept:
            storage = self._blocks.storage
            context.kept[layer] = SegmentView(
                storage.shape[3], self._head_dim, storage.dtype == np.uint16, self._config
            )
        view: SegmentView = context.kept[layer]
        view.advance(end, lambda start, stop: self._load(layer, context, batch.block_tables[r], start, stop))
        return view

    def _load(self, layer: int, context: Context, blocks: npt.NDArray[np.int32], start: int, stop: int) -> Segment:
        key = None
        if context.keys is not None:
            # Tokens behind the exact ones were computed sparsely from there on.
            key = (context.keys[stop // BLOCK_SIZE - 1], layer, start, context.exact if context.exact < stop else stop)
        segment = self.segments.get(key)
        if segment is None:
            pool, at, pages = self._blocks.place(layer, blocks[start // BLOCK_SIZE : stop // BLOCK_SIZE])
            segment = self._build(key, *tokens_of(pool, at, pages), start, stop)
            if self.buffer is not None:
                segment = self.buffer.store(segment)
            self.segments.put(key, segment)
        return segment

    def _build(
        self, key: _Key | None, keys: npt.NDArray[Any], values: npt.NDArray[Any], start: int, stop: int
    ) -> Segment:
        """Only what follows from the tokens alone is the pool's, so that anybody who has the prompt finds it."""
        clusters = self._config.clusters(start, stop)
        if self.shared is None or key is None or key[3] != stop or clusters >= 1 << 16:
            return Segment.build(keys, values, start, self._config)
        pinned = self._config.pinned(start, stop)
        name, layer = key[0] + start.to_bytes(8, "little"), key[1]
        labels = self.shared.get(name, layer, (len(keys), stop - start - pinned), clusters)
        segment = Segment.build(keys, values, start, self._config, labels)
        if labels is None:
            self.shared.put(name, layer, segment.labels())
        return segment


def _together(m: F32, l: F32, acc: F32, found: Partial) -> tuple[F32, F32]:
    """(out, lse) ``[heads][head_dim]``, ``[heads]`` of one row's parts, with ``found`` in the place of the first."""
    assert kernels is not None
    m[0, :, 0], l[0, :, 0], acc[0, :, 0] = found
    out, lse = np.empty((1, acc[0, :, 0].size), np.float32), np.empty((1, m.shape[1]), np.float32)
    kernels.merge_segments(m, l, acc, out, lse)
    return out.reshape(m.shape[1], -1), lse[0]


class SegmentCache:
    """Finished segments by what their bytes depend on: contexts with an equal beginning share them."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._held: OrderedDict[_Key, Segment] = OrderedDict()
        self.bytes = 0
        self.hits = 0
        self.builds = 0

    def get(self, key: _Key | None) -> Segment | None:
        """The segment of ``key``, or None."""
        if key is None or key not in self._held:
            return None
        self._held.move_to_end(key)
        self.hits += 1
        return self._held[key]

    def put(self, key: _Key | None, segment: Segment) -> None:
        """Keep a segment that was just built; without a key it is nobody else's."""
        self.builds += 1
        if key is None:
            return
        self._held[key] = segment
        self.bytes += segment.meta_bytes + segment.rows.nbytes
        while self.bytes > self._most:
            _, old = self._held.popitem(last=False)
            self.bytes -= old.meta_bytes + old.rows.nbytes
