"""Linear layers alone: bandwidth at few rows, arithmetic at many, each beside its bound.

    PYTHONPATH=src python bench/lab/gemm.py [--threads 2] [--modes int8,int4,bf16] [--rows 1,8,64,512] [--isa avx2]

Shapes are those of a 0.6B Qwen3 layer. Copies of a matrix exceed the cache together; the best of many short
passes is printed. GB/s counts packed weights; GOP/s counts 2*M*N*K; the bound is the larger of the two times.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from statepool.native import kernels as k

SHAPES = {"qkv": (4096, 1024), "o": (1024, 2048), "gate_up": (6144, 1024), "down": (1024, 3072), "head": (151936, 1024)}
CACHE_BYTES = 96 << 20


def read_bandwidth(passes: int = 7) -> float:
    """GB/s of reading written memory with no arithmetic to speak of: the maximum of a buffer per thread."""
    from concurrent.futures import ThreadPoolExecutor

    buffers = [np.ones(1 << 25, np.int64) for _ in range(k.threads())]
    with ThreadPoolExecutor(k.threads()) as pool:
        best = 1e9
        for _ in range(passes):
            if len(buffers) == 1:
                start = time.thread_time()
                np.max(buffers[0])
                best = min(best, time.thread_time() - start)
            else:
                start = time.perf_counter()
                list(pool.map(np.max, buffers))
                best = min(best, time.perf_counter() - start)
    return sum(b.nbytes for b in buffers) / best / 1e9


def measure(layers: list, rows: int, budget: float) -> float:
    """Best seconds of one product over `layers`, used in turn."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, layers[0].k)).astype(np.float32)
    out = np.empty((rows, layers[0].n), np.float32)
    clock = time.thread_time if k.threads() == 1 else time.perf_counter  # one thread: neighbours' slices do not count
    best, end, done = 1e9, time.perf_counter() + budget, 0
    while time.perf_counter() < end or done < 3 * len(layers):
        start = clock()
        layers[done % len(layers)].apply(x, out)
        best = min(best, clock() - start)
        done += 1
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", default=None)
    parser.add_argument("--modes", default="int8,int4,bf16")
    parser.add_argument("--rows", default="1,8,64,512")
    parser.add_argument("--shapes", default="qkv,o,gate_up,down")
    parser.add_argument("--ghz", type=float, default=3.5, help="clock, for the arithmetic bound")
    parser.add_argument("--seconds", type=float, default=0.4, help="time spent on each line")
    arguments = parser.parse_args()
    k.set_threads(arguments.threads)
    if arguments.isa:
        k.set_isa(arguments.isa)
    int8, int4 = {"amx": (1024, 64), "avx512": (64, 64)}.get(k.isa(), (32, 56))
    macs = {"int8": int8, "int4": int4, "bf16": 16, "fp32": 16}
    bandwidth = read_bandwidth()
    print(f"{k.isa()}, {arguments.threads} threads, {bandwidth:.1f} GB/s read, {arguments.ghz} GHz assumed")
    print(f"{'shape':8} {'mode':5} {'M':>4} {'ms':>9} {'GB/s':>7} {'GOP/s':>7} {'of bound':>8}")
    for name in arguments.shapes.split(","):
        n, width = SHAPES[name]
        weight = np.random.default_rng(1).standard_normal((n, width)).astype(np.float32)
        for mode in arguments.modes.split(","):
            first = k.Linear(weight, mode)
            copies = min(40, max(1, CACHE_BYTES // first.nbytes))
            layers = [first] + [k.Linear(weight, mode) for _ in range(copies - 1)]
            for rows in map(int, arguments.rows.split(",")):
                seconds = measure(layers, rows, arguments.seconds)
                peak = macs[mode] * 2 * arguments.ghz * arguments.threads
                gops, gbs = 2 * rows * n * width / seconds / 1e9, first.nbytes / seconds / 1e9
                bound = max(first.nbytes / bandwidth, 2 * rows * n * width / peak) / 1e9
                print(f"{name:8} {mode:5} {rows:4} {seconds * 1e3:9.3f} {gbs:7.1f} {gops:7.0f} {bound / seconds:8.0%}")


if __name__ == "__main__":
    main()
