"""A training run's curve, as ``statepool train`` writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from statepool.dashboard.tail import Tail

__all__ = ["TrainingView"]

_SHOWN = ("step", "phase", "reward", "loss", "held_out", "seconds", "kl", "entropy", "gap_max", "tokens")
_CURVE = "curve.jsonl"


class TrainingView:
    """One run's folder."""

    def __init__(self, folder: Path) -> None:
        self._tail = Tail(folder / _CURVE)
        self._folder = folder
        self._steps: list[dict[str, Any]] = []

    def look(self) -> dict[str, Any]:
        """Every step so far with the figures that are drawn."""
        anew, lines = self._tail.look()
        if anew:
            self._steps.clear()
        self._steps += [{name: line[name] for name in _SHOWN if name in line} for line in lines]
        return {"folder": str(self._folder), "steps": self._steps}
