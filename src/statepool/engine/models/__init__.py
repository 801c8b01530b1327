"""Model families. One file each; all run on the one decoder of ``decoder.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from statepool.core.errors import InvalidCheckpoint
from statepool.engine.models import llama, qwen2, qwen3
from statepool.engine.models.decoder import DecoderConfig

FAMILIES: dict[str, Callable[[dict[str, Any]], DecoderConfig]] = {
    "llama": llama.parse,
    "qwen2": qwen2.parse,
    "qwen3": qwen3.parse,
}


def parse_config(config: dict[str, Any]) -> DecoderConfig:
    """The decoder described by a checkpoint's ``config.json``.

    Raises:
        InvalidCheckpoint: unknown ``model_type``, or a field missing or impossible.
    """
    family = config.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise InvalidCheckpoint(
            f"model_type {family!r} is not supported; known are {', '.join(FAMILIES)}", param="model_type"
        )
    return FAMILIES[family](config)
