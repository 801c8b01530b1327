"""What one token's attention costs on this machine: exact, by the wave index and by blocks, layer after layer.

Keys lie around one centre per sixteen tokens, as trained ones do; random ones would make every choice alike. Layers and
queries take turns, so that no cache holds what is read.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from statepool.core.errors import InvalidConfig
from statepool.engine.attention.moba import MobaAttention, MobaConfig
from statepool.engine.attention.wave import WaveConfig, WaveIndex
from statepool.engine.batch import Batch, Context
from statepool.kv.layout import BLOCK_SIZE
from statepool.kv.tiers import Resident
from statepool.native import kernels

_QUERIES = 16
_ROUNDS, _STEPS = 5, 8


@dataclass(frozen=True, slots=True)
class Cost:
    """Milliseconds of one token in one layer, as a median, and bytes that exact attention reads for each of ours."""

    name: str
    milliseconds: float
    byte_ratio: float


class Layers:
    """Layers of one context, exact in a paged pool and as wave indexes over the same keys and values.

    Args:
        tokens: of the context, a multiple of 16.
        head_dim, heads, kv_heads: the shape of attention.
        layers: how many; together they should be larger than the caches.
        config: of the wave indexes; None builds none.

    Raises:
        InvalidConfig: the sizes do not fit each other, or the native module is not there.
    """

    def __init__(
        self, tokens: int, head_dim: int, heads: int, kv_heads: int, layers: int, config: WaveConfig | None
    ) -> None:
        if kernels is None:
            raise InvalidConfig("attention is measured on the native kernels, which are not built here")
        if tokens < BLOCK_SIZE or tokens % BLOCK_SIZE or min(kv_heads, layers) < 1 or heads % kv_heads or head_dim % 16:
            raise InvalidConfig(
                f"tokens and head_dim must be multiples of 16 and heads one of kv_heads; got {tokens} tokens, "
                f"{heads} heads of {head_dim} over {kv_heads}, {layers} layers"
            )
        rng = np.random.default_rng(0)
        self.tokens, self.layers = tokens, layers
        self._blocks = tokens // BLOCK_SIZE
        self._pool = np.empty((self._blocks * layers, 1, 2, kv_heads, BLOCK_SIZE * head_dim), np.uint16)
        self.indexes: list[WaveIndex] = []
        self.build_seconds = 0.0
        for layer in range(layers):
            keys, values = draw(rng, kv_heads, tokens, head_dim)
            part = self._pool[layer * self._blocks : (layer + 1) * self._blocks, 0]
            paged = (kv_heads, self._blocks, BLOCK_SIZE, head_dim)
            part[:, 0] = keys.reshape(paged).transpose(1, 0, 3, 2).reshape(part[:, 0].shape)
            part[:, 1] = values.reshape(paged).transpose(1, 0, 2, 3).reshape(part[:, 1].shape)
            if config is not None:
                began = time.perf_counter()
                self.indexes.append(WaveIndex.build(keys, values, config))
                self.build_seconds += (time.perf_counter() - began) / layers
        self._queries = rng.standard_normal((_QUERIES, heads, head_dim), np.float32) * 2
        self._moba = MobaAttention(Resident(self._pool), head_dim, MobaConfig())
        self._contexts = [Context(0) for _ in range(layers)]

    def exact(self, number: int) -> npt.NDArray[np.float32]:
        """Exact attention of the ``number``-th query in the layer whose turn it is."""
        query, table = self._queries[number % _QUERIES][None], self._table(number)
        out = np.empty((1, query.shape[1] * query.shape[2]), np.float32)
        start, length = np.array([0, 1], np.int32), np.array([self.tokens], np.int32)
        assert kernels is not None
        kernels.attention(query, self._pool, 0, table[None], start, length, query.shape[2] ** -0.5, out)
        return out

    def wave(self, number: int) -> npt.NDArray[np.float32]:
        """The same by the wave index."""
        return self.indexes[number % self.layers].decode(self._queries[number % _QUERIES]).out

    def moba(self, number: int) -> npt.NDArray[np.float32]:
        """The same by blocks."""
        query: npt.NDArray[np.float32] = self._queries[number % _QUERIES].reshape(1, -1)
        batch = Batch.build(
            [([0], self.tokens - 1, self._table(number).tolist())], [self._contexts[number % self.layers]]
        )
        out = np.empty_like(query)
        self._moba.attend(0, query, batch, out)
        return out

    def byte_ratio(self) -> float:
        """Bytes of exact attention for each that the wave index reads, over all queries."""
        costs = [self.indexes[0].cost(self._traced(query)) for query in self._queries]
        return float(np.mean([cost.dense_bytes / cost.bytes for cost in costs]))

    def costs(self) -> list[Cost]:
        """Exact, wave and blocks in turn."""
        self.moba(0)
        before = self._moba.rows_read
        self.moba(self.layers)
        # Each query head reads its own blocks, exact attention every KV head once.
        dense = 2 * self.tokens * self._pool.shape[3]
        ratios = {"exact": 1.0, "wave": self.byte_ratio(), "moba": dense / (self._moba.rows_read - before)}
        steps: dict[str, Callable[[int], Any]] = {"exact": self.exact, "wave": self.wave, "moba": self.moba}
        times: dict[str, list[float]] = {name: [] for name in steps}
        for turn in range(_ROUNDS):
            for name, step in steps.items():
                began = time.perf_counter()
                for number in range(turn * _STEPS, (turn + 1) * _STEPS):
                    step(number)
                times[name].append(1e3 * (time.perf_counter() - began) / _STEPS)
        return [Cost(name, statistics.median(found), ratios[name]) for name, found in times.items()]

    def _table(self, number: int) -> npt.NDArray[np.int32]:
        first = number % self.layers * self._blocks
        return np.arange(first, first + self._blocks, dtype=np.int32)

    def _traced(self, query: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
        zones = self.indexes[0].decode(query, trace=True).zones
        assert zones is not None
        return zones


def draw(rng: np.random.Generator, heads: int, count: int, width: int) -> tuple[Any, Any]:
    """Keys around ``count / 16`` centres and random values: bf16 bits ``[heads][count][width]``."""
    centres = rng.standard_normal((heads, max(count // 16, 1), width), np.float32)
    near = np.take_along_axis(centres, rng.integers(0, centres.shape[1], (heads, count, 1)), axis=1)
    spread, values = rng.standard_normal((2, heads, count, width), np.float32)
    return _bf16(near + 0.5 * spread), _bf16(values)


def _bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Rounded to bf16, ties to even, as its bits."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
