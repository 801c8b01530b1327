"""Execution environments for agents: a sandbox of any template from a used slot in milliseconds (arXiv 2509.09525).

``Sandbox`` is what most programs need; ``Pool`` holds the slots and templates behind it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["Execution", "Limits", "Pool", "Sandbox", "Template"]

_LAZY = {
    "Execution": "statepool.sandbox.execution",
    "Limits": "statepool.sandbox.template",
    "Pool": "statepool.sandbox.pool",
    "Sandbox": "statepool.sandbox.sandbox",
    "Template": "statepool.sandbox.template",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'statepool.sandbox' has no attribute {name!r}")
