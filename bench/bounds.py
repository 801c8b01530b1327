"""What the machine could do at best, measured in the same run as the rows it judges."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bench.checkpoint import CACHE, Shape
from bench.machine import favour

_SOURCE = Path(__file__).with_name("probe.c")
_BYTES_PER_WEIGHT = {"int8": 1.0, "int4": 0.5 + 4 / 64, "bf16": 2.0, "fp32": 4.0}
_MACS_PER_CYCLE = {
    # Two 16-lane multiply-adds of 16-bit pairs a cycle; one 64-lane dot product of bytes a cycle; a product of tiles
    # (16 x 16 x 64) in 16 cycles. The processors that have tiles also have two 512-bit units for floats.
    "int8": {"amx": 1024, "avx512": 64, "avx2": 32, "generic": 16},
    "float": {"amx": 32, "avx512": 16, "avx2": 16, "generic": 8},
}


@dataclass(frozen=True, slots=True)
class Bounds:
    """Clock under load, read bandwidth with all threads."""

    gigahertz: float
    read_gbs: float
    threads: int

    def decode_seconds(self, shape: Shape, quant: str, batch: int, context: int) -> float:
        """Least time of one decode step: all weights and all keys and values are read once."""
        head = "int8" if quant == "int4" else quant
        weights = shape.block_parameters * _BYTES_PER_WEIGHT[quant] + shape.head_parameters * _BYTES_PER_WEIGHT[head]
        return (weights + batch * shape.kv_bytes(context)) / (self.read_gbs * 1e9)

    def prefill_seconds(self, shape: Shape, quant: str, batch: int, context: int, isa: str) -> float:
        """Least time of a prompt: the multiply-adds of all layers, the head once a sequence, causal attention."""
        kind = "int8" if quant in ("int8", "int4") else "float"
        rate = self.gigahertz * 1e9 * self.threads
        linear = batch * (context * shape.block_parameters + shape.head_parameters)
        attention = batch * shape.layers * shape.heads * shape.head_dim * context * (context + 1)
        per_cycle = _MACS_PER_CYCLE[kind][_family(isa)], _MACS_PER_CYCLE["float"][_family(isa)]
        return linear / (rate * per_cycle[0]) + attention / (rate * per_cycle[1])


def _family(isa: str) -> str:
    return isa if isa in _MACS_PER_CYCLE["int8"] else "generic"


def probe(threads: int) -> Bounds:
    """Build (once) and run the probe.

    Raises:
        FileNotFoundError: no C compiler.
        subprocess.CalledProcessError: the probe does not build.
    """
    binary = CACHE / "probe"
    if not binary.exists() or binary.stat().st_mtime < _SOURCE.stat().st_mtime:
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            raise FileNotFoundError("no C compiler: install gcc or clang")
        CACHE.mkdir(exist_ok=True)
        flags = ["-O3", "-march=native", "-pthread", "-o", str(binary)]
        subprocess.run([compiler, str(_SOURCE), *flags], check=True)
    with subprocess.Popen([str(binary), str(threads)], stdout=subprocess.PIPE, start_new_session=True) as process:
        favour(process.pid)
        answer = json.loads(process.communicate()[0])
    return Bounds(answer["gigahertz"], answer["read_gbs"], threads)
