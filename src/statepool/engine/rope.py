"""Rotary position tables: default, linear, llama3 and yarn scaling.

Frequencies and angles are float32 as in the Hugging Face models, so that both agree to the last
digits at long positions; sine and cosine are taken in float64 and rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from statepool.core.errors import InvalidCheckpoint

F32 = npt.NDArray[np.float32]


def rope_tables(parameters: Mapping[str, Any], head_dim: int, positions: int) -> tuple[F32, F32]:
    """Cosine and sine tables, each float32 ``[positions][head_dim / 2]``.

    ``parameters`` is ``rope_parameters`` of a transformers 5 config, or ``rope_scaling`` of an older
    one with ``rope_theta`` put into it.

    Raises:
        InvalidCheckpoint: unknown ``rope_type`` or a missing parameter.
    """
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in _KINDS:
        raise InvalidCheckpoint(
            f"rope_type {kind!r} is not supported; known are {', '.join(_KINDS)}", param="rope_type"
        )
    try:
        inverse, factor = _KINDS[kind](parameters, head_dim)
    except KeyError as error:
        raise InvalidCheckpoint(f"rope_parameters of type {kind} lacks {error}", param="rope_parameters") from None
    angles = np.arange(positions, dtype=np.float32)[:, None] * inverse[None, :]
    wide = angles.astype(np.float64)
    scale = np.float32(factor)
    return np.cos(wide).astype(np.float32) * scale, np.sin(wide).astype(np.float32) * scale


def _default(p: Mapping[str, Any], dim: int) -> tuple[F32, float]:
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return (1.0 / float(p["rope_theta"]) ** exponents.astype(np.float64)).astype(np.float32), 1.0


def _linear(p: Mapping[str, Any], dim: int) -> tuple[F32, float]:
    inverse, factor = _default(p, dim)
    return inverse / np.float32(p["factor"]), factor


def _llama3(p: Mapping[str, Any], dim: int) -> tuple[F32, float]:
    inverse, _ = _default(p, dim)
    old, low, high = p["original_max_position_embeddings"], p["low_freq_factor"], p["high_freq_factor"]
    wavelength = 2 * math.pi / inverse.astype(np.float64)
    slow = inverse / np.float32(p["factor"])
    smooth = (old / wavelength - low) / (high - low)
    blend = (1 - smooth) * slow + smooth * inverse
    medium = (wavelength <= old / low) & (wavelength >= old / high)
    return np.where(medium, blend, np.where(wavelength > old / low, slow, inverse)).astype(np.float32), 1.0


def _yarn(p: Mapping[str, Any], dim: int) -> tuple[F32, float]:
    inverse, _ = _default(p, dim)
    factor, old, theta = float(p["factor"]), p["original_max_position_embeddings"], float(p["rope_theta"])

    def turning_dim(rotations: float) -> float:
        return dim * math.log(old / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = turning_dim(p.get("beta_fast") or 32), turning_dim(p.get("beta_slow") or 1)
    if p.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(dim // 2, dtype=np.float32) - low) / max(high - low, 0.001), 0, 1)
    blend = inverse / np.float32(factor) * ramp + inverse * (1 - ramp)
    attention = p.get("attention_factor")
    if attention is None:
        scale, all_dim = p.get("mscale"), p.get("mscale_all_dim")
        attention = _mscale(factor, scale) / _mscale(factor, all_dim) if scale and all_dim else _mscale(factor, 1)
    return blend.astype(np.float32), float(attention)


def _mscale(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


_KINDS = {"default": _default, "linear": _linear, "llama3": _llama3, "yarn": _yarn}
