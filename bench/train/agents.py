"""B1 to B5: the example on several seeds, without its tool, and killed on the way; reuse of KV; the gap."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.row import Row
from statepool.engine.engine import Engine
from statepool.rollout import LocalHosts
from statepool.tasks.catalog import draw, find
from statepool.train.agent import Agent, Job
from statepool.train.checkpoint import read_curve
from statepool.train.config import read
from statepool.train.policy import OwnPolicy, scatter
from statepool.train.prefix_tree import hidden, plant
from statepool.train.world import World

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
    curves, seconds, cpus, far = [], [], [], ""
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            curve, wall, cpu = _train(Path(folder), seed, {})
            far = far or from_float64(Path(folder) / "run" / "model")
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
    row.note = f"at most 1e-4 in {steps} of {len(played)} steps. Distance from float64, {far}"
    yield row


def _without_tool() -> Row:
    with tempfile.TemporaryDirectory() as folder:
        curve, _, _ = _train(Path(folder), 0, {"settings": {"steps": 2, "digits": 2, "tool": False}, "steps": 20})
    looks = [line["held_out"] for line in curve if "held_out" in line]
    row = Row("B2", "the same questions trained and asked without the tool: held-out success", "share", "lower", 0.40)
    row.value, row.own = max(looks), " ".join(f"{look:.2f}" for look in looks)
    return row


def _killed(times: int) -> Row:
    """Kill a run at drawn steps, at a drawn moment within each, and compare with one that nobody killed."""
    noise = random.Random(7)
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = Path(folder) / "whole", Path(folder) / "broken"
        _run(_config(Path(folder), whole, SHORT))
        one = read_curve(whole)
        path = _config(Path(folder), broken, SHORT)
        steps = sorted(noise.sample(range(len(one) - 1), times))
        for step in steps:
            _kill(path, broken, step, noise.uniform(0.0, one[step + 1]["seconds"]))
        _run(path)
        other = read_curve(broken)
        pairs = itertools.zip_longest(map(_timeless, one), map(_timeless, other))
        differing = sum(a != b for a, b in pairs)
        model = Path("model") / "model.safetensors"
        same = (whole / model).read_bytes() == (broken / model).read_bytes()
    row = Row("B3", "lines of the curve that differ after SIGKILL at drawn steps", "lines", "lower", 0.0)
    row.value, row.own = float(differing + (not same)), f"{times} kills, {len(one)} lines"
    row.note = f"killed in steps {', '.join(str(step + 1) for step in steps)}"
    row.note += f"; weights {'equal' if same else 'DIFFER'} byte for byte"
    return row


def from_float64(model: Path) -> str:
    """How far the engine's log-probabilities, and those of torch's own float32 sums, are from float64."""
    config = read(EXAMPLE, {"model": str(model), "threads": 1})
    task = find(config.train.task, config.train.settings)
    world = World(task, model, config.world)
    try:
        agent = Agent(LocalHosts([Engine(config.engine)]), task, world.open, config.agent)
        found = agent.run([Job(problem, i, 4) for i, problem in enumerate(draw(task, 1, 16))])
    finally:
        world.close()
    samples = [t.sample() for t in found]
    net, wide = OwnPolicy(model), OwnPolicy(model)
    wide.module.double()
    tree = plant(samples)
    with torch.no_grad():
        exact = wide.score(samples)
        logits = net.module.logits(hidden(net.module, tree)[tree.predictors])
        plain = scatter(logits, tree.targets, tree.rows, tree.columns, tree.shape, 1.0)
    said = torch.zeros_like(exact.logprobs)
    for row, trajectory in enumerate(found):
        values = trajectory.logprobs()
        said[row, : len(values)] = torch.tensor(values)
    kept = exact.mask > 0
    sides = (("engine", said), ("torch's own float32", plain.logprobs.double()))
    off = {name: (values - exact.logprobs)[kept].abs() for name, values in sides}
    return ", ".join(f"{name}: mean {values.mean():.1e}, most {values.max():.1e}" for name, values in off.items())


def _train(folder: Path, seed: int, changes: dict[str, Any]) -> tuple[list[dict[str, Any]], float, float]:
    """The curve of one run of the example in ``folder``, its wall and CPU seconds."""
    out = folder / "run"
    before, began = os.times(), time.monotonic()
    _run(_config(folder, out, {**changes, "seed": seed}))
    wall, after = time.monotonic() - began, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return read_curve(out), wall, cpu


def _config(folder: Path, out: Path, changes: dict[str, Any]) -> Path:
    import yaml

    path = folder / f"{out.name}.yaml"
    settings = {**yaml.safe_load(EXAMPLE.read_text()), "tensorboard": False, "out": str(out), **changes}
    path.write_text(json.dumps(settings))
    return path


def _run(path: Path) -> None:
    """Run to the end.

    Raises:
        RuntimeError: it failed.
    """
    done = subprocess.run(_command(path), capture_output=True, text=True, timeout=3600, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])


def _kill(path: Path, out: Path, step: int, seconds: float) -> None:
    """Start or go on, and kill it so long after the line of ``step``.

    Raises:
        RuntimeError: it ended by itself, or did not get there.
    """
    process = subprocess.Popen(_command(path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 900
        while not any(line["step"] >= step for line in read_curve(out)):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the run to be killed in step {step + 1} did not get there")
            time.sleep(0.02)
        time.sleep(seconds)
    finally:
        process.kill()
        process.wait()


def _command(path: Path) -> list[str]:
    return [sys.executable, "-m", "statepool.cli", "train", str(path)]


def _timeless(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name != "seconds"}
