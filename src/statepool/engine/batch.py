"""The arrays of one step: what the model needs to know of a batch, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from statepool.kv.layout import BLOCK_SIZE

I32 = npt.NDArray[np.int32]


@dataclass(slots=True)
class Context:
    """What an attention backend may know of a sequence beyond a step's arrays, and keep between steps.

    Attributes:
        exact: leading tokens whose attention reads every key, whatever the backend.
        name: of the request.
        keys: keys of the sequence's full blocks, or None where its KV must not be shared.
        kept: by layer, whatever the layer's backend wants to find again; gone when the sequence's blocks are.
    """

    exact: int
    name: str = ""
    keys: list[bytes] | None = None
    kept: dict[int, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Batch:
    """``T`` tokens of ``R`` sequences, sequence by sequence.

    Attributes:
        tokens, positions: int32 ``[T]``.
        slots: int64 ``[T]``, where each token's KV goes: ``block * 16 + offset``.
        block_tables: int32 ``[R][most blocks]``, padded with 0.
        query_start: int32 ``[R + 1]``, the rows of each sequence.
        context_len: int32 ``[R]``, tokens in the cache after this step.
        contexts: one per sequence; empty where every backend is exact.
        read: whether the hidden states of any row are wanted; those of a prompt's middle are not.
    """

    tokens: I32
    positions: I32
    slots: npt.NDArray[np.int64]
    block_tables: I32
    query_start: I32
    context_len: I32
    contexts: Sequence[Context] = ()
    read: bool = True

    @property
    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What a device, or another process, has to be given: the arrays, by name."""
        return {
            "tokens": self.tokens,
            "positions": self.positions,
            "slots": self.slots,
            "block_tables": self.block_tables,
            "query_start": self.query_start,
            "context_len": self.context_len,
        }

    @classmethod
    def build(
        cls,
        parts: Sequence[tuple[Sequence[int], int, Sequence[int]]],
        contexts: Sequence[Context] = (),
        read: bool = True,
    ) -> Batch:
        """From (tokens to compute, position of the first, blocks) of each sequence, and their contexts."""
        counts = np.array([len(ids) for ids, _, _ in parts], np.int32)
        start = np.zeros(len(parts) + 1, np.int32)
        np.cumsum(counts, out=start[1:])
        first = np.array([at for _, at, _ in parts], np.int32)
        total = int(start[-1])
        tokens = np.fromiter(chain.from_iterable([ids for ids, _, _ in parts]), np.int32, total)
        row = np.repeat(np.arange(len(parts)), counts)
        positions = np.arange(total, dtype=np.int32) + (first - start[:-1])[row]
        held = np.array([len(blocks) for _, _, blocks in parts])
        tables = np.zeros((len(parts), held.max(initial=0)), np.int32)
        flat = chain.from_iterable([blocks for _, _, blocks in parts])
        tables[np.arange(tables.shape[1]) < held[:, None]] = np.fromiter(flat, np.int32, held.sum())
        slots = tables[row, positions // BLOCK_SIZE].astype(np.int64) * BLOCK_SIZE + positions % BLOCK_SIZE
        return cls(tokens, positions, slots, tables, start, first + counts, contexts, read)
