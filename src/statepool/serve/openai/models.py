"""``/v1/models``: what is served."""

from __future__ import annotations

from typing import Any

from statepool.serve.served_model import ServedModel


def model_card(model: ServedModel) -> dict[str, Any]:
    """One entry of the list."""
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": "statepool",
        "max_model_len": model.info.max_model_len,
        "quant": model.info.quant,
        "attention": model.attention,
        "parameters": model.info.parameters,
    }
