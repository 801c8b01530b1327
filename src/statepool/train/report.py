"""A run's numbers where people look: a live curve in the terminal, a line of JSON per step, TensorBoard, W&B."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from statepool.core.errors import InvalidConfig
from statepool.train.checkpoint import CURVE, read_curve

_BARS = " ▁▂▃▄▅▆▇█"


def spark(values: list[float], width: int = 40) -> str:
    """Numbers from 0 to 1 as a row of bars, the last ``width`` of them."""
    return "".join(_BARS[round(min(max(value, 0.0), 1.0) * (len(_BARS) - 1))] for value in values[-width:])


class Report:
    """Writes the lines of one run.

    Args:
        folder: of the run; ``curve.jsonl`` gets a line per step, ``tensorboard/`` the event files.
        tensorboard: write them. wandb: project, or None.
        out: where the terminal's lines go.

    Raises:
        InvalidConfig: TensorBoard or W&B is asked for and not installed.
    """

    def __init__(
        self, folder: Path, tensorboard: bool, wandb: str | None, settings: dict[str, Any], out: TextIO | None = None
    ) -> None:
        self._out = out or sys.stderr
        self._live = self._out.isatty()
        self._rewards = [line["reward"] for line in read_curve(folder) if "reward" in line]
        self._board: Any = None
        self._wandb: Any = None
        if tensorboard:
            try:
                from tensorboardX import SummaryWriter
            except ModuleNotFoundError:
                raise InvalidConfig(
                    "tensorboard: true needs tensorboardX; pip install 'statepool[train]', or set it to false",
                    param="tensorboard",
                ) from None
            self._board = SummaryWriter(str(folder / "tensorboard"))
        if wandb:
            try:
                import wandb as service
            except ModuleNotFoundError:
                raise InvalidConfig("wandb is not installed; pip install wandb", param="wandb") from None
            self._wandb = service.init(project=wandb, dir=str(folder), config=settings, resume="allow")
        self._curve = (folder / CURVE).open("a")

    def line(self, values: Mapping[str, Any]) -> None:
        """Record one step: numbers by name, ``step`` among them."""
        self._curve.write(json.dumps(values) + "\n")
        self._curve.flush()
        flat = {name: value for name, value in values.items() if isinstance(value, int | float)}
        flat |= {f"faults/{name}": count for name, count in values.get("faults", {}).items()}
        if self._board is not None:
            for name, value in flat.items():
                self._board.add_scalar(name, value, values["step"])
            self._board.flush()
        if self._wandb is not None:
            self._wandb.log(flat, step=values["step"])
        self._show(values)

    def say(self, text: str) -> None:
        """A sentence for the person watching."""
        self._clear()
        print(text, file=self._out, flush=True)

    def close(self) -> None:
        """Close every file."""
        if self._live:
            print(file=self._out)
        self._curve.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _show(self, values: Mapping[str, Any]) -> None:
        if "reward" in values:
            self._rewards.append(values["reward"])
        parts = [f"step {values['step']:>4}", values["phase"]]
        for name, form in (
            ("reward", "{:.3f}"),
            ("held_out", "held-out {:.1%}"),
            ("held_out_score", "score {:.3f}"),
            ("loss", "loss {:+.4f}"),
        ):
            if values.get(name) is not None:
                parts.append((name + " " if name == "reward" else "") + form.format(values[name]))
        if "gap_max" in values:
            parts.append(f"gap {values['gap_max']:.0e}")
        parts += [f"{count} {name}" for name, count in values.get("faults", {}).items()]
        parts.append(f"{values['seconds']:.1f} s")
        text = "  ".join(parts)
        if self._live and "held_out" not in values:
            self._clear()
            print(f"{spark(self._rewards)}  {text}", end="", file=self._out, flush=True)
        else:
            self.say(text if not self._live else f"{spark(self._rewards)}  {text}")

    def _clear(self) -> None:
        if self._live:
            print("\r\033[K", end="", file=self._out)
