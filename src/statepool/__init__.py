"""statepool runs and trains LLM agents on shared state.

Every room is importable alone (``from statepool.kv import BlockPool``); this module
itself imports nothing heavy. ``LLM``, ``SamplingParams`` and ``Request`` are re-exported lazily.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["LLM", "Request", "SamplingParams", "__version__"]

_LAZY = {
    "LLM": "statepool.engine.llm",
    "Request": "statepool.engine.request",
    "SamplingParams": "statepool.engine.request",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'statepool' has no attribute {name!r}")
