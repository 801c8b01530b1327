"""Our attention by itself: exact paged decode, or the wave index, of one token, layer after layer."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt
from turns import serve

from bench.attention.data import draw
from statepool.engine.attention.wave import WaveConfig, WaveIndex
from statepool.native import kernels

_PAGE, _QUERIES = 16, 16


class Kernel:
    """One pool and one wave index per layer over the same keys and values."""

    def load(
        self, context: int, head_dim: int, heads: int, kv_heads: int, layers: int, threads: int, wave: bool
    ) -> dict[str, Any]:
        """Keys around ``context / 16`` centres, as trained models have them, and random values."""
        kernels.set_threads(threads)
        rng = np.random.default_rng(0)
        blocks = context // _PAGE
        self._pool = np.empty((blocks * layers, 1, 2, kv_heads, _PAGE * head_dim), np.uint16)
        self._indexes, build = [], 0.0
        for layer in range(layers):
            keys, values = draw(rng, kv_heads, context, head_dim)
            part = self._pool[layer * blocks : (layer + 1) * blocks, 0]
            paged = (kv_heads, blocks, _PAGE, head_dim)
            part[:, 0] = keys.reshape(paged).transpose(1, 0, 3, 2).reshape(part[:, 0].shape)
            part[:, 1] = values.reshape(paged).transpose(1, 0, 2, 3).reshape(part[:, 1].shape)
            if wave:
                began = time.perf_counter()
                self._indexes.append(WaveIndex.build(keys, values, WaveConfig.paper(update_segment=256)))
                build += time.perf_counter() - began
        self._context, self._layers, self._blocks = context, layers, blocks
        self._queries = rng.standard_normal((_QUERIES, heads, head_dim), np.float32) * 2
        ratio = 0.0
        if wave:
            index = self._indexes[0]
            costs = [index.cost(index.decode(query, trace=True).zones) for query in self._queries]
            ratio = float(np.mean([cost.dense_bytes / cost.bytes for cost in costs]))
        return {"isa": kernels.isa(), "byte_ratio": ratio, "build_seconds": build / layers}

    def run(self, kind: str, steps: int, seed: int) -> dict[str, Any]:
        """``steps`` layers' worth of ``dense`` or ``wave`` decode, a fresh query and the next layer each time."""
        step = self._dense if kind == "dense" else self._wave
        began = time.perf_counter()
        for number in range(seed, seed + steps):
            step(number)
        return {"seconds": time.perf_counter() - began, "tokens": steps}

    def _wave(self, number: int) -> Any:
        return self._indexes[number % self._layers].decode(self._queries[number % _QUERIES])

    def _dense(self, number: int) -> npt.NDArray[np.float32]:
        query = self._queries[number % _QUERIES][None]
        first = number % self._layers * self._blocks
        table = np.arange(first, first + self._blocks, dtype=np.int32)[None]
        out = np.empty((1, query.shape[1] * query.shape[2]), np.float32)
        start, length = np.array([0, 1], np.int32), np.array([self._context], np.int32)
        kernels.attention(query, self._pool, 0, table, start, length, query.shape[2] ** -0.5, out)
        return out


if __name__ == "__main__":
    serve(Kernel())
