"""What this machine has, what statepool will use of it, why, and what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from statepool import __version__

__all__ = ["Finding", "Report", "examine", "read_bandwidth"]

State = Literal["ok", "note", "missing"]
_EXTRAS = {
    "serve": ("fastapi", "uvicorn", "zmq", "orjson", "prometheus_client"),
    "train": ("torch", "tensorboardX"),
    "dev": ("pytest", "hypothesis", "mypy", "ruff"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report: what was looked at, what was found, and what to do about it."""

    topic: str
    state: State
    found: str
    remedy: str = ""


@dataclass(slots=True)
class Report:
    """All findings, and the same as plain values for ``--json``."""

    findings: list[Finding] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)

    def add(self, topic: str, state: State, found: str, remedy: str = "") -> None:
        """Append one finding."""
        self.findings.append(Finding(topic, state, found, remedy))


def examine(model: str = "tiny", megabytes: int = 256) -> Report:
    """Look at machine and installation; takes about a second, most of it for the bandwidth.

    ``megabytes`` is the size of the buffer read for the bandwidth; it should exceed the last cache several times.
    """
    report = Report()
    report.values["version"] = __version__
    report.add(
        "statepool", "ok", f"{__version__} on Python {platform.python_version()}, {platform.platform(terse=True)}"
    )
    _cores(report)
    _memory(report)
    _bandwidth(report, megabytes)
    _native(report)
    _torch(report)
    _gpu(report)
    _sandboxes(report)
    _extras(report)
    _model(report, model)
    return report


def read_bandwidth(megabytes: int, threads: int) -> float:
    """Bytes per second read from memory by ``threads`` threads, best of four passes.

    The buffer is written first: untouched pages all map to one page of zeros and would be read from the cache.
    """
    words = np.ones(megabytes << 18, dtype=np.int32)
    parts = np.array_split(words, threads)
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(4):
            started = time.perf_counter()
            list(pool.map(np.maximum.reduce, parts))
            best = min(best, time.perf_counter() - started)
    return words.nbytes / best


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cores(report: Report) -> None:
    cores = usable_cores()
    report.values["cores"] = cores
    report.add("cores", "ok", f"{cores} usable: the native kernels take as many threads (--threads changes it)")


def _memory(report: Report) -> None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        report.add("memory", "note", "not known on this system")
        return
    table = {name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in lines)}
    report.values["memory_bytes"] = {"total": table["MemTotal"], "available": table["MemAvailable"]}
    report.add("memory", "ok", f"{_gib(table['MemAvailable'])} of {_gib(table['MemTotal'])} available")


def _bandwidth(report: Report, megabytes: int) -> None:
    free = report.values.get("memory_bytes", {}).get("available", 1 << 32)
    size = max(16, min(megabytes, free >> 23))
    rate = read_bandwidth(size, usable_cores())
    report.values["read_bandwidth_bytes_per_second"] = round(rate)
    report.add(
        "bandwidth",
        "ok",
        f"{rate / 1e9:.0f} GB/s read now (other load lowers it): with 1 GB of packed weights one sequence "
        f"decodes at most {rate / 1e9:.0f} tokens/s",
    )


def _native(report: Report) -> None:
    from statepool.native import kernels, reason

    if kernels is None:
        report.values["native"] = {"loaded": False, "reason": reason}
        compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
        remedy = "make native" if compiler else "apt-get install g++, then make native"
        report.add("native kernels", "missing", f"not in use: {reason}; the slow reference runs instead", remedy)
        return
    report.values["native"] = {"loaded": True, "isa": kernels.isa(), "file": Path(str(kernels.__file__)).name}
    forced = f" (lowered by STATEPOOL_ISA={os.environ['STATEPOOL_ISA']})" if os.environ.get("STATEPOOL_ISA") else ""
    report.add(
        "native kernels", "ok", f"{kernels.isa()} instructions{forced}; every instruction set gives the same bits"
    )


def _version(name: str) -> str | None:
    """Installed version of a package, without importing it."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _torch(report: Report) -> None:
    version = _version("torch")
    report.values["torch"] = version
    if version is None:
        remedy = "make setup (STATEPOOL_TORCH_INDEX names an index with CPU builds)"
        report.add("torch", "note", "not installed; serving does not need it, training and the tests do", remedy)
        return
    build = "a CPU build" if "+cpu" in version else "a build that may use a GPU"
    report.add("torch", "ok", f"{version}, {build}; used by training and tests, not by serving on a CPU")


def _gpu(report: Report) -> None:
    from statepool.engine import cuda

    report.values["gpus"] = cuda.devices()
    lacking = cuda.missing()
    if not report.values["gpus"]:
        report.add("GPU", "note", f"none: {lacking}; everything runs on the CPU")
    elif lacking is not None:
        report.add("GPU", "note", f"{cuda.devices()} there, not used: {lacking}", "pip install 'statepool[gpu]'")
    else:
        report.add("GPU", "ok", f"{cuda.devices()} there; --backend auto uses the first (docs/gpu.md)")


def _sandboxes(report: Report) -> None:
    from statepool.sandbox.caps import probe

    found = probe()
    report.values["sandbox"] = {item.name: item.works for item in found}
    drivers = [item.name for item in found if item.works and item.name in ("ns", "userns")]
    more = [item.name for item in found if item.works and item.name not in ("ns", "userns")]
    if drivers:
        report.add("sandboxes", "ok", f"driver {drivers[0]}; also {', '.join(more) or 'nothing'}")
    else:
        reasons = "; ".join(f"{item.name}: {item.found}" for item in found[:2])
        report.add("sandboxes", "note", f"none ({reasons})", "run as root, or allow user namespaces")


def _extras(report: Report) -> None:
    report.values["extras"] = {}
    for extra, modules in _EXTRAS.items():
        absent = [name for name in modules if importlib.util.find_spec(name) is None]
        report.values["extras"][extra] = not absent
        if absent:
            report.add(f"extra {extra}", "note", f"lacks {', '.join(absent)}", f"pip install 'statepool[{extra}]'")
        else:
            report.add(f"extra {extra}", "ok", "complete")


def _model(report: Report, model: str) -> None:
    from statepool.core.errors import StatepoolError
    from statepool.engine.config import EngineConfig
    from statepool.engine.hub import resolve
    from statepool.engine.loader import Checkpoint
    from statepool.engine.models import parse_config
    from statepool.kv import KVLayout

    config = EngineConfig(model=model)
    try:
        checkpoint = Checkpoint(resolve(model))
        decoder = parse_config(checkpoint.config)
        parameters = decoder.validate(checkpoint)
    except (StatepoolError, FileNotFoundError) as error:
        report.values["model"] = {"name": model, "error": str(error)}
        report.add(f"model {model}", "missing", str(error), "name a folder in the Hugging Face layout")
        return
    layout = KVLayout(decoder.layers, decoder.kv_heads, decoder.head_dim, "bf16")
    tokens = config.kv_bytes // layout.block_bytes * 16
    report.values["model"] = {
        "name": model,
        "family": decoder.family,
        "parameters": parameters,
        "quant": config.quant,
        "kv_bytes": config.kv_bytes,
        "kv_tokens": tokens,
        "max_position": decoder.max_position,
    }
    report.add(
        f"model {model}",
        "ok",
        f"{decoder.family}, {parameters / 1e6:.1f} M parameters, up to {decoder.max_position} tokens; "
        f"{config.quant} because it reads a quarter of the bytes of fp32 and its sums are exact (--quant changes it)",
    )
    report.add(
        "KV pool",
        "ok",
        f"{_gib(config.kv_bytes)} by default: {tokens} tokens of {layout.token_bytes} bytes (--kv-bytes changes it)",
    )


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB"
