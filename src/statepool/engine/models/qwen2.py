"""Qwen2 and Qwen2.5: biases on query, key and value."""

from __future__ import annotations

from typing import Any

from statepool.engine.models.decoder import DecoderConfig


def parse(config: dict[str, Any]) -> DecoderConfig:
    """Read a ``model_type: qwen2`` config."""
    return DecoderConfig.parse(config, "qwen2", qkv_bias=True)
