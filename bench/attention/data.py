"""Keys and values to decode over."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.checkpoint import to_bf16


def draw(rng: np.random.Generator, heads: int, count: int, width: int) -> tuple[Any, Any]:
    """Keys around ``count / 16`` centres, as trained ones lie, and values: bf16 bits ``[heads][count][width]``."""
    centres = rng.standard_normal((heads, count // 16, width), np.float32)
    near = np.take_along_axis(centres, rng.integers(0, count // 16, (heads, count, 1)), axis=1)
    keys = near + 0.5 * rng.standard_normal((heads, count, width), np.float32)
    return to_bf16(keys), to_bf16(rng.standard_normal(keys.shape, np.float32))
