"""The compiled core and the numbers it shares with Python."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

try:
    from statepool.native import _graph  # type: ignore[attr-defined]  # compiled: no source for mypy to find
except ImportError as error:  # pragma: no cover - a machine without a compiler
    raise ImportError(
        f"statepool.vector needs its native module ({error}); run `make native` with a C++ compiler"
    ) from error

core: Any = _graph

Metric = Literal["l2", "cos", "ip"]
"""``l2``: squared Euclidean distance. ``cos``: 1 - cosine. ``ip``: minus the inner product."""

Dtype = Literal["f32", "f16", "bf16", "i8"]
"""How a vector is stored; ``i8`` keeps one scale per vector."""

EngineName = Literal["auto", "sequential", "edge", "iqan", "nosync", "async", "roles"]

METRICS: dict[str, int] = {"l2": 0, "cos": 1, "ip": 2}
DTYPES: dict[str, int] = {"f32": 0, "f16": 1, "bf16": 2, "i8": 3}
ENGINES: dict[str, int] = {"auto": -1, "sequential": 0, "edge": 1, "iqan": 2, "nosync": 3, "async": 4, "roles": 5}


def checksum(data: bytes) -> int:
    """CRC32C."""
    return int(core.checksums(np.frombuffer(data, np.uint8), len(data))[0]) if data else 0
