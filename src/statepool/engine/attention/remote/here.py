"""Partial offload: the KV heads that stay with the model, on its own device, while the workers attend for the others.

Which heads these are is fixed when the engine starts, so a request's bits depend on nothing that happens meanwhile.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from statepool.engine.attention.remote.protocol import Plan
from statepool.engine.attention.remote.share import Share
from statepool.kv import KVLayout

__all__ = ["Here"]


class Here:
    """The first KV heads of every block, in the model's process. Lanes may be in several threads.

    Args:
        ops: ``statepool.native.kernels``.
        layout: of these heads.
        kv_heads: of the model.
        blocks: how many block numbers there are.
    """

    def __init__(self, ops: Any, layout: KVLayout, kv_heads: int, blocks: int) -> None:
        self._share = Share(ops, layout, blocks)
        self._heads, self._of = layout.kv_heads, kv_heads
        self._done: dict[int, npt.NDArray[np.float32]] = {}

    def plan(self, plan: Plan) -> None:
        """Take the arrays of a lane's next step."""
        self._share.plan(plan)

    def attend(self, lane: int, layer: int, query: Any, kv: Any) -> None:
        """Attend with queries ``[T, heads, head_dim]`` and rows ``[T, 2, kv_heads, head_dim]`` of all heads."""
        mine = query.shape[1] * self._heads // self._of
        self._share.begin(lane, layer, np.ascontiguousarray(query[:, :mine]))
        self._share.append(lane, layer, np.ascontiguousarray(kv[:, :, : self._heads]))
        self._done[lane] = self._share.end(lane)

    def put(self, lane: int, mixed: npt.NDArray[Any]) -> None:
        """Put the result into its heads of ``mixed [T, heads * head_dim]``."""
        done = self._done.pop(lane).reshape(len(mixed), self._heads, -1)
        mixed.reshape(len(mixed), self._of, -1)[:, : self._heads] = done

    def read(self, blocks: list[int]) -> npt.NDArray[Any]:
        """Its part of whole blocks."""
        part: npt.NDArray[Any] = self._share.storage[blocks]
        return part

    def write(self, blocks: list[int], data: npt.NDArray[Any]) -> None:
        """Overwrite its part of whole blocks ``[n, *block_shape]`` of all heads."""
        self._share.storage[blocks] = data[:, :, :, : self._heads]
