"""B1 to B5: the example on several seeds, without its tool, and killed on the way; reuse of KV; the gap."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.row import Row
from statepool.train.checkpoint import read_curve

EXAMPLE = Path(__file__).parents[2] / "examples" / "tool_agent.yaml"
SHORT = {"imitation": 4, "steps": 4, "prompts": 4, "members": 4, "eval_problems": 16, "eval_every": 4, "warmup": 2}


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """The wanted rows."""
    if not only or {"B1", "B4", "B5"} & set(only):
        yield from _example((0,) if quick else (0, 1, 2))
    if not only or "B2" in only:
        yield _without_tool()
    if not only or "B3" in only:
        yield _killed(2 if quick else 8)


def _example(seeds: Sequence[int]) -> Iterator[Row]:
    curves, seconds, cpus = [], [], []
    for seed in seeds:
        curve, wall, cpu = _train(seed, {})
        curves.append(curve)
        seconds.append(wall)
        cpus.append(cpu)
    looks = [[line["held_out"] for line in curve if "held_out" in line] for curve in curves]
    row = Row("B1", "held-out success after the example, worst seed", "share", "higher", 0.95)
    row.value = min(found[-1] for found in looks)
    row.own = ", ".join(f"seed {seed}: {found[-1]:.1%}" for seed, found in zip(seeds, looks, strict=True))
    row.note = "; ".join(
        f"seed {seed}: " + " ".join(f"{look:.2f}" for look in found) for seed, found in zip(seeds, looks, strict=True)
    )
    yield row
    row = Row("B1b", "held-out success before it, best seed", "share", "lower", 0.40)
    row.value = max(found[0] for found in looks)
    yield row
    row = Row("B1c", "minutes the example takes, slowest seed", "min", "lower", 10.0)
    row.value = max(seconds) / 60
    row.own = ", ".join(f"{wall:.0f} s wall, {cpu:.0f} s of CPU" for wall, cpu in zip(seconds, cpus, strict=True))
    yield row
    played = [line for curve in curves for line in curve if line["phase"] == "play"]
    row = Row("B4", "prompt tokens computed over those that were new", "x", "lower", 1.05)
    row.value = sum(line["computed"] for line in played) / sum(line["fresh"] for line in played)
    row.own = f"{sum(line['computed'] for line in played)} of {sum(line['fresh'] for line in played)}"
    yield row
    row = Row("B5", "largest difference of a log-probability, engine to trainer", "nat", "lower", 1e-4)
    row.value = max(line["gap_max"] for line in played)
    tokens = sum(line["learned"] for line in played)
    mean = sum(line["gap_mean"] * line["learned"] for line in played) / max(tokens, 1)
    steps = sum(line["gap_max"] <= 1e-4 for line in played)
    row.own = f"mean {mean:.1e} over {tokens:.0f} tokens"
    row.note = f"at most 1e-4 in {steps} of {len(played)} steps; float32 on both sides"
    yield row


def _without_tool() -> Row:
    curve, _, _ = _train(0, {"settings": {"steps": 2, "digits": 2, "tool": False}, "steps": 20})
    looks = [line["held_out"] for line in curve if "held_out" in line]
    row = Row("B2", "the same questions trained and asked without the tool: held-out success", "share", "lower", 0.40)
    row.value, row.own = max(looks), " ".join(f"{look:.2f}" for look in looks)
    return row


def _killed(times: int) -> Row:
    noise = random.Random(7)
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = Path(folder) / "whole", Path(folder) / "broken"
        _run(_config(Path(folder), whole, SHORT), None)
        path = _config(Path(folder), broken, SHORT)
        kills = 0
        while kills < times and _run(path, noise.uniform(3, 12)):
            kills += 1
        _run(path, None)
        one, other = (_timeless(read_curve(place)) for place in (whole, broken))
        differing = sum(a != b for a, b in zip(one, other, strict=False)) + abs(len(one) - len(other))
        same = (whole / "model" / "model.safetensors").read_bytes() == (
            broken / "model" / "model.safetensors"
        ).read_bytes()
    row = Row("B3", "lines of the curve that differ after kills at random moments", "lines", "lower", 0.0)
    row.value, row.own = float(differing + (not same)), f"{kills} kills, {len(one)} lines"
    row.note = f"weights {'equal' if same else 'DIFFER'} byte for byte"
    return row


def _train(seed: int, changes: dict[str, Any]) -> tuple[list[dict[str, Any]], float, float]:
    """The curve of one run of the example, its wall and CPU seconds."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        before, began = os.times(), time.monotonic()
        _run(_config(Path(folder), out, {**changes, "seed": seed}), None)
        wall, after = time.monotonic() - began, os.times()
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        return read_curve(out), wall, cpu


def _config(folder: Path, out: Path, changes: dict[str, Any]) -> Path:
    import yaml

    path = folder / f"{out.name}.yaml"
    settings = {**yaml.safe_load(EXAMPLE.read_text()), "tensorboard": False, "out": str(out), **changes}
    path.write_text(json.dumps(settings))
    return path


def _run(path: Path, seconds: float | None) -> bool:
    """Run to the end, or kill it after so long; True if it was killed."""
    command = [sys.executable, "-m", "statepool.cli", "train", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        _, said = process.communicate(timeout=seconds if seconds is not None else 7200)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return True
    if process.returncode:
        raise RuntimeError(said.decode()[-2000:])
    return False


def _timeless(curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name != "seconds"} for line in curve]
