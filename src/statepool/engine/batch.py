"""The arrays of one step: what the model needs to know of a batch, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
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
        # Lists first: most steps are a token each of a few sequences, where calls of NumPy cost more than loops.
        tokens, positions, slots, tables, ends = (list[int]() for _ in range(5))
        start = [0]
        width = max([len(blocks) for _, _, blocks in parts], default=0)
        for ids, first, blocks in parts:
            end = first + len(ids)
            places = range(first, end)
            tokens += ids
            positions += places
            slots += [blocks[at // BLOCK_SIZE] * BLOCK_SIZE + at % BLOCK_SIZE for at in places]
            tables += blocks
            tables += [0] * (width - len(blocks))
            start.append(len(tokens))
            ends.append(end)
        shape = (len(parts), width)
        return cls(
            np.array(tokens, np.int32),
            np.array(positions, np.int32),
            np.array(slots, np.int64),
            np.array(tables, np.int32).reshape(shape),
            np.array(start, np.int32),
            np.array(ends, np.int32),
            contexts,
            read,
        )
