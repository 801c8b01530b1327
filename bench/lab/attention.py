"""Attention alone: decode over a paged pool beside torch's SDPA and the read bandwidth, all in one run.

    PYTHONPATH=src python bench/lab/attention.py [--threads 2] [--contexts 512,4096] [--isa avx2] [--prefill 512]

The shape is that of Qwen3-0.6B: 28 layers, 16 query and 8 KV heads of 128. Every layer has its own pages, scattered
over the pool, so a pass reads 28 layers from memory. Sides take turns; the best of many short passes is printed.
SDPA reads contiguous keys and values, which is its best case.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from statepool.native import kernels

LAYERS, HEADS, KV_HEADS, WIDTH, PAGE = 28, 16, 8, 128, 16


def best_of(sides: list[Callable[[], None]], seconds: float) -> list[float]:
    """Best seconds of each side, sides in turn. With one thread a neighbour's slices of the core do not count."""
    clock = time.thread_time if kernels.threads() == 1 else time.perf_counter
    best, end = [1e9] * len(sides), time.perf_counter() + seconds
    while time.perf_counter() < end or 1e9 in best:
        for i, side in enumerate(sides):
            start = clock()
            side()
            best[i] = min(best[i], clock() - start)
    return best


def decode(context: int, rows: int) -> tuple[list[Callable[[], None]], int, float]:
    """Sides (ours, SDPA bf16, SDPA float32, plain read), bytes of KV, and the largest difference from SDPA float32."""
    rng = np.random.default_rng(0)
    pages = -(-context // PAGE)
    k = torch.randn(LAYERS, KV_HEADS, pages * PAGE, WIDTH).bfloat16()
    v = torch.randn(LAYERS, KV_HEADS, pages * PAGE, WIDTH).bfloat16()
    blocks = rng.permutation(pages).astype(np.int32)
    pool = np.empty((pages, LAYERS, 2, KV_HEADS, PAGE * WIDTH), np.uint16)
    cut = (LAYERS, KV_HEADS, pages, PAGE, WIDTH)
    pool[blocks, :, 0] = k.view(cut).permute(2, 0, 1, 4, 3).reshape(pages, LAYERS, KV_HEADS, -1).view(torch.uint16)
    pool[blocks, :, 1] = v.view(cut).permute(2, 0, 1, 3, 4).reshape(pages, LAYERS, KV_HEADS, -1).view(torch.uint16)
    q = rng.standard_normal((rows, HEADS, WIDTH)).astype(np.float32)
    table, start = blocks[None].copy(), np.array([0, rows], np.int32)
    length, out = np.array([context], np.int32), np.empty((rows, HEADS * WIDTH), np.float32)
    wide = torch.from_numpy(q).transpose(0, 1)[None]
    mask = torch.arange(context)[None] <= torch.arange(context - rows, context)[:, None]

    def ours() -> None:
        for layer in range(LAYERS):
            kernels.attention(q, pool, layer, table, start, length, WIDTH**-0.5, out)

    def peer(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> Callable[[], None]:
        def run() -> None:
            for layer in range(LAYERS):
                torch.nn.functional.scaled_dot_product_attention(
                    query,
                    keys[layer, :, :context][None],
                    values[layer, :, :context][None],
                    attn_mask=None if rows == 1 else mask,
                    enable_gqa=True,
                )

        return run

    kernels.attention(q, pool, 0, table, start, length, WIDTH**-0.5, out)
    dense = torch.nn.functional.scaled_dot_product_attention(
        wide, k[0, :, :context][None].float(), v[0, :, :context][None].float(), attn_mask=mask, enable_gqa=True
    )
    error = float((dense[0].transpose(0, 1).flatten(1) - torch.from_numpy(out)).abs().max())
    words = torch.from_numpy(pool.view(np.int64).reshape(-1))
    sides = [ours, peer(wide.bfloat16(), k, v), peer(wide, k.float(), v.float()), lambda: words.max() and None]
    return sides, LAYERS * 2 * KV_HEADS * context * WIDTH * 2, error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", default=None)
    parser.add_argument("--contexts", default="512,4096")
    parser.add_argument("--prefill", type=int, default=0, help="rows of a prefill to time as well")
    parser.add_argument("--seconds", type=float, default=2.0, help="time spent on each line")
    arguments = parser.parse_args()
    kernels.set_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    if arguments.isa:
        kernels.set_isa(arguments.isa)
    print(f"isa {kernels.isa()}, {arguments.threads} threads; ms for {LAYERS} layers")
    with torch.inference_mode():
        for context in map(int, arguments.contexts.split(",")):
            sides, size, error = decode(context, 1)
            ours, half, single, read = best_of(sides, arguments.seconds)
            print(
                f"decode at {context}: {ours * 1e3:.2f} ms, {size / ours / 1e9:.1f} GB/s "
                f"({read / ours:.0%} of plain reading at {size / read / 1e9:.1f}); SDPA bf16 {half * 1e3:.1f} "
                f"({half / ours:.1f}x), float32 {single * 1e3:.1f} ({single / ours:.1f}x); difference {error:.0e}"
            )
        if arguments.prefill:
            sides, _, error = decode(arguments.prefill, arguments.prefill)
            ours, half, single, _ = best_of(sides, arguments.seconds)
            work = 4 * LAYERS * HEADS * WIDTH * arguments.prefill * (arguments.prefill + 1) / 2
            print(
                f"prefill of {arguments.prefill}: {ours * 1e3:.1f} ms, {work / ours / 1e9:.0f} GFLOP/s; SDPA bf16 "
                f"{half * 1e3:.1f} ({half / ours:.1f}x), float32 {single * 1e3:.1f} ({single / ours:.1f}x); "
                f"difference {error:.0e}"
            )


if __name__ == "__main__":
    main()
