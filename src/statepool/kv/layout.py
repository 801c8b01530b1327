"""How the bytes of a KV block lie in memory, and the array that holds all blocks."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

BLOCK_SIZE = 16
"""Tokens per block. Fixed: the attention kernels' page, so part of the numerics."""


@dataclass(frozen=True, slots=True)
class KVLayout:
    """Shape of the KV cache of one model.

    A block is one contiguous region ``[layers][2][kv_heads][16 * head_dim]``, so it moves with one
    copy. Keys lie transposed in their page, ``[head_dim][16]``, values ``[16][head_dim]``.
    """

    layers: int
    kv_heads: int
    head_dim: int
    dtype: Literal["bf16", "fp32"] = "bf16"

    @property
    def block_shape(self) -> tuple[int, int, int, int]:
        """Shape of one block."""
        return (self.layers, 2, self.kv_heads, BLOCK_SIZE * self.head_dim)

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """uint16 for bf16 (NumPy has no bfloat16), float32 otherwise."""
        return np.dtype(np.uint16 if self.dtype == "bf16" else np.float32)

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers."""
        return int(np.prod(self.block_shape)) * self.numpy_dtype.itemsize

    @property
    def token_bytes(self) -> int:
        """Bytes of one token over all layers."""
        return self.block_bytes // BLOCK_SIZE

    @property
    def name(self) -> str:
        """A text that differs whenever the bytes would; part of every block key."""
        return f"kv1/l{self.layers}/h{self.kv_heads}/d{self.head_dim}/{self.dtype}"

    def allocate(self, blocks: int) -> npt.NDArray[Any]:
        """A zeroed array of ``blocks`` blocks, page-aligned, on huge pages where the kernel gives them.

        Memory is taken from the system only when a block is first written.
        """
        size = max(blocks * self.block_bytes, mmap.PAGESIZE)
        # Private: Linux gives huge pages to shared memory only where an administrator allowed it.
        private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
        area = mmap.mmap(-1, size, **private)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            area.madvise(mmap.MADV_HUGEPAGE)
        return self._shaped(area, blocks)

    def map(self, descriptor: int, blocks: int) -> npt.NDArray[Any]:
        """The array of ``blocks`` blocks in a file in memory, which other processes map as well."""
        return self._shaped(mmap.mmap(descriptor, max(blocks * self.block_bytes, mmap.PAGESIZE)), blocks)

    def _shaped(self, area: mmap.mmap, blocks: int) -> npt.NDArray[Any]:
        flat = np.frombuffer(area, dtype=self.numpy_dtype, count=blocks * self.block_bytes // self.numpy_dtype.itemsize)
        return flat.reshape(blocks, *self.block_shape)


def tokens_of(
    storage: npt.NDArray[Any], layer: int, blocks: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Keys and values ``[kv_heads][tokens][head_dim]`` of one layer in whole blocks of a pool's array."""
    pages = storage[blocks, layer]
    count, _, heads, elements = pages.shape
    width = elements // BLOCK_SIZE
    keys = pages[:, 0].reshape(count, heads, width, BLOCK_SIZE).transpose(1, 0, 3, 2)
    values = pages[:, 1].reshape(count, heads, BLOCK_SIZE, width).transpose(1, 0, 2, 3)
    shape = (heads, count * BLOCK_SIZE, width)
    return keys.reshape(shape), values.reshape(shape)
