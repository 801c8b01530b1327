"""Llama 2 and 3, and models saved as such."""

from __future__ import annotations

from typing import Any

from statepool.engine.models.decoder import DecoderConfig


def parse(config: dict[str, Any]) -> DecoderConfig:
    """Read a ``model_type: llama`` config."""
    attention, mlp = bool(config.get("attention_bias", False)), bool(config.get("mlp_bias", False))
    return DecoderConfig.parse(config, "llama", qkv_bias=attention, o_bias=attention, mlp_bias=mlp)
