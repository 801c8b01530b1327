"""G14: time to a reward of 0.9 against TRL's GRPOTrainer, on the same model, problems, batch and rate."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from bench.peers.setup import python_of
from bench.row import Row
from statepool import bundled
from statepool.engine.text.template import ChatTemplate
from statepool.tasks.catalog import draw, find
from statepool.train.run import step_seed

HERE = Path(__file__).parent
TARGET = 0.9
WINDOW = 3
"""Steps whose mean reward must reach it: a single batch is luck."""
TASKS: dict[str, dict[str, Any]] = {
    "retrieval": {"task": "retrieval", "settings": {"size": 200}, "tokens": 32, "noise": 0.4},
    "addition": {"task": "column-addition", "settings": {"low": 2, "high": 2}, "tokens": 96, "noise": 0.3},
}
"""What the bundled model knows, asked of it with noise on its matrices (in their own standard deviations): unharmed it
begins above the target. Of what it never learned its answers hardly differ from each other, so there is little to learn
from: our side did not reach the target on `echo` at rates of 1e-4, 3e-4 and 1e-3, nor either on additions of six
digits at 3e-4."""
SEEDS = 5
BATCH = {
    "prompts": 16,
    "members": 8,
    "rate": 3e-4,
    "steps": 30,
    "warmup": 0,  # the two schedules count differently: TRL's first step of a warm-up learns nothing
    "threads": 1,
    "target": TARGET,
    "window": WINDOW,
}


def run(quick: bool) -> Iterator[Row]:
    """A row per task."""
    for name, id_ in (("retrieval", "G14"), ("addition", "G14b")):
        row = Row(
            id_,
            f"{name}: time to reward {TARGET}, TRL's over ours, in CPU seconds",
            "x",
            "higher",
            3.0,
            peer="trl 1.16.0",
        )
        short = {"steps": 5} if quick else {}
        row.own, row.note = _race(row, {**BATCH, **TASKS[name], **short}, quick)
        yield row


def _race(row: Row, given: dict[str, Any], quick: bool) -> tuple[str, str]:
    peer = python_of("trl")
    if peer is None:
        return "", "trl is not installed: python -m bench.peers.setup trl"
    seeds = range(1 if quick else SEEDS)
    ratios, ours, theirs, curves, apart = [], [], [], [], []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            model = _noisy(given["noise"], Path(folder))
            mine = _lines([sys.executable, "-m", "bench.train.own_worker"], {**given, "seed": seed, "model": model})
            other = _lines(
                [str(peer), str(HERE / "trl_worker.py"), "train", model],
                {**given, "seed": seed, "rows": _rows(given, seed)},
            )
        if not mine or not other:
            return "", f"seed {seed}: a side ended without a step"
        reached = _mean(mine) >= TARGET and _mean(other) >= TARGET
        # Where a side did not get there, time per step is compared, and the note says so.
        per = 1.0 if reached else 1.0 / len(mine), 1.0 if reached else 1.0 / len(other)
        ours.append(mine[-1]["cpu"] * per[0])
        theirs.append(other[-1]["cpu"] * per[1])
        ratios.append(theirs[-1] / ours[-1])
        wall = other[-1]["seconds"] * per[1] / (mine[-1]["seconds"] * per[0])
        apart.append(statistics.mean(m["reward"] - o["reward"] for m, o in zip(mine, other, strict=False)))
        curves.append(
            f"seed {seed}: {len(mine)} steps to {_mean(mine):.2f} "
            f"against {len(other)} to {_mean(other):.2f}"
            f"{'' if reached else ' (not reached, per step)'}, wall {wall:.1f}x"
        )
    row.value, row.peer_value, row.peer_unit = statistics.median(ratios), statistics.median(theirs), "s"
    error = statistics.stdev(apart) / len(apart) ** 0.5 if len(apart) > 1 else float("nan")
    gap = f"rewards of common steps, ours less theirs: {statistics.mean(apart):+.3f}, standard error {error:.3f}"
    return f"{statistics.median(ours):.1f} s", "; ".join([*curves, gap])


def _mean(lines: list[dict[str, Any]]) -> float:
    """The reward that counts: the mean of the last steps."""
    return statistics.mean(line["reward"] for line in lines[-WINDOW:])


def _noisy(share: float, folder: Path) -> str:
    """The bundled model in ``folder`` with normal noise on its layers' matrices, ``share`` of each one's deviation."""
    shutil.copytree(bundled.path(), folder, dirs_exist_ok=True)
    drawn = torch.Generator().manual_seed(0)
    weights = {name: tensor.float() for name, tensor in sorted(load_file(folder / "model.safetensors").items())}
    for name, tensor in weights.items():
        if tensor.dim() == 2 and "embed" not in name:
            tensor += share * tensor.std() * torch.randn(tensor.shape, generator=drawn)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def _rows(given: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """The problems of every step, as texts."""
    task = find(given["task"], given["settings"])
    template = ChatTemplate.load(bundled.path())
    problems = [p for step in range(given["steps"]) for p in draw(task, step_seed(seed, step), given["prompts"])]
    return [{"prompt": template.render(list(task.prompt(p))), "values": list(p.values)} for p in problems]


def _lines(command: list[str], given: dict[str, Any]) -> list[dict[str, Any]]:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(given, file)
        file.flush()
        done = subprocess.run([*command, file.name], capture_output=True, text=True, timeout=7200, check=False)
    if done.returncode:
        print(done.stderr[-3000:], file=sys.stderr)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"step"')]
    if lines:  # a side takes minutes: whoever waits, or has to stop it, sees what there is
        said = f"{given['task']}, seed {given['seed']}, {Path(command[0]).parent.parent.name}: {len(lines)} steps"
        print(f"{said} to {_mean(lines):.2f}, {lines[-1]['cpu']:.1f} CPU seconds", file=sys.stderr, flush=True)
    return lines
