"""Qwen3: RMSNorm on every query and key head, head_dim independent of the hidden size."""

from __future__ import annotations

from typing import Any

from statepool.engine.models.decoder import DecoderConfig


def parse(config: dict[str, Any]) -> DecoderConfig:
    """Read a ``model_type: qwen3`` config."""
    attention = bool(config.get("attention_bias", False))
    return DecoderConfig.parse({"head_dim": 128, **config}, "qwen3", qkv_bias=attention, o_bias=attention, qk_norm=True)
