"""Where a run stands, as one file that is whole or is the one before, and its curve, cut to the same step."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from statepool.core.errors import InvalidConfig, StatepoolError
from statepool.train.learner import Learner

FILE, CURVE = "checkpoint.pt", "curve.jsonl"
FREE = frozenset({"steps", "target", "tensorboard", "wandb", "out", "eval_problems", "threads", "isolation"})
"""Settings that a resumed run may have changed."""


class CheckpointMismatch(StatepoolError):
    """The checkpoint belongs to a run with other settings."""

    status = 409
    code = "checkpoint_mismatch"


def save(folder: Path, learner: Learner, step: int, settings: dict[str, Any]) -> None:
    """Write the state after ``step`` steps; a crash meanwhile leaves the state before."""
    state = {
        "model": learner.policy.module.state_dict(),
        "optimizer": learner.optimizer.state_dict(),
        "step": step,
        "settings": json.dumps(settings, sort_keys=True),
    }
    fresh = folder / (FILE + ".new")
    with fresh.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(folder / FILE)


def load(folder: Path, learner: Learner, settings: dict[str, Any]) -> int:
    """Take up the state in ``folder`` and return its step; 0 if there is none.

    Raises:
        CheckpointMismatch: it was written with other settings; the message names the first.
        InvalidConfig: the file is no checkpoint.
    """
    path = folder / FILE
    if not path.exists():
        (folder / CURVE).unlink(missing_ok=True)
        return 0
    try:
        saved: dict[str, Any] = torch.load(path, weights_only=True)
        before = json.loads(saved["settings"])
    except (pickle.UnpicklingError, RuntimeError, KeyError, ValueError, EOFError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise InvalidConfig(f"{path} is no checkpoint of a run: {reason}; --fresh begins anew", param="out") from None
    now = json.loads(json.dumps(settings, sort_keys=True))
    for room, values in now.items():
        for name, value in values.items():
            if name not in FREE and before.get(room, {}).get(name) != value:
                raise CheckpointMismatch(
                    f"{path} was trained with {name} {before.get(room, {}).get(name)!r}, not {value!r}; "
                    "name another folder with --out, or begin anew with --fresh",
                    param=name,
                )
    learner.policy.module.load_state_dict(saved["model"])
    learner.optimizer.load_state_dict(saved["optimizer"])
    _cut(folder / CURVE, int(saved["step"]))
    return int(saved["step"])


def read_curve(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's curve, a torn last one left out."""
    path = folder / CURVE
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _cut(path: Path, step: int) -> None:
    kept = [line for line in read_curve(path.parent) if line["step"] <= step]
    fresh = path.with_suffix(".new")
    fresh.write_text("".join(json.dumps(line) + "\n" for line in kept))
    fresh.replace(path)
