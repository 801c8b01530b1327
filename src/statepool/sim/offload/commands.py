"""``statepool plan TRACE --attention MODEL``: which devices to take, and whether the attentions get their own."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from statepool.core.errors import InvalidConfig, InvalidRequest
from statepool.sim.offload.choose import Choice, choose
from statepool.sim.offload.costs import (
    DEVICES,
    MODELS,
    WORKLOADS,
    Device,
    Estimate,
    Shape,
    Workload,
    named,
    shape_of,
)
from statepool.sim.offload.picture import draw
from statepool.sim.traces import read_trace

__all__ = ["add_options", "plan"]

_BUDGET = 45.0


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``plan`` that are about attentions."""
    group = parser.add_argument_group("attention workers", "Devices for a model and for its KV; see docs/lamina.md.")
    group.add_argument("--attention", metavar="MODEL", help=f"{', '.join(MODELS)}, or a folder: plan devices for it")
    group.add_argument("--compute", default="h100", metavar="NAME", help=f"{', '.join(DEVICES)} (default h100)")
    group.add_argument("--memory", default="h20", metavar="NAME", help="device of the attentions (default h20)")
    group.add_argument("--partial", action="store_true", help="let KV heads stay with the model where that is faster")
    group.add_argument("--prices", default="", metavar="NAME=DOLLARS,…", help="per hour, instead of the built-in ones")
    group.add_argument("--slo-tbt", type=float, default=math.inf, metavar="S", help="most seconds between tokens")
    group.add_argument("--plot", type=Path, metavar="FILE", help="SVG of tokens per dollar over the budget")


def plan(options: argparse.Namespace) -> int:
    """Print the best layouts for each workload, and what they gain over the best without attention workers."""
    shape, works = _shape(options.attention), _workloads(options.trace)
    devices = _priced(options.prices)
    compute, memory = (named(kind, getattr(options, kind), devices) for kind in ("compute", "memory"))
    budget = _BUDGET if options.budget is None else options.budget
    if not (budget > 0 and options.slo_tbt > 0):
        raise InvalidConfig("budget and slo_tbt must be above 0", param="budget")
    found = [
        (work, choose(shape, work, compute, memory, budget, None, options.slo_tbt, options.partial)) for work in works
    ]
    if options.plot is not None:
        options.plot.write_text(draw(shape, works, compute, memory, budget, options.slo_tbt))
    if options.json:
        print(json.dumps([_record(work, choice) for work, choice in found]))
    else:
        print(_table(shape, budget, found))
    return 0


def _shape(name: str) -> Shape:
    path = Path(name)
    return shape_of(path) if path.is_dir() else named("attention", name, MODELS)


def _workloads(trace: Path) -> list[Workload]:
    if str(trace) == "all":
        return list(WORKLOADS.values())
    if str(trace) in WORKLOADS:
        return [WORKLOADS[str(trace)]]
    if not trace.exists():
        raise InvalidRequest(f"trace {str(trace)!r} is no file, and none of all, {', '.join(WORKLOADS)}", param="trace")
    calls = read_trace(trace)
    count = len(calls)
    return [Workload(trace.stem, sum(c.prompt for c in calls) / count, sum(c.output for c in calls) / count)]


def _priced(text: str) -> Mapping[str, Device]:
    devices = dict(DEVICES)
    for part in filter(None, text.split(",")):
        match = re.fullmatch(r"([a-z0-9-]+)=([0-9.]+)", part)
        if match is None or not float(match[2]) > 0:
            raise InvalidConfig(f"prices: write NAME=DOLLARS above 0, got {part!r}", param="prices")
        devices[match[1]] = replace(named("prices", match[1], devices), price=float(match[2]))
    return devices


def _record(work: Workload, choice: Choice) -> dict[str, object]:
    def plain(each: Estimate | None) -> dict[str, object] | None:
        return None if each is None else {**asdict(each), "tokens_dollar": each.tokens_dollar}

    return {
        "workload": asdict(work),
        "declined": choice.declined,
        "best": plain(choice.best),
        "together": plain(choice.together),
        "apart": plain(choice.apart),
    }


def _table(shape: Shape, budget: float, found: list[tuple[Workload, Choice]]) -> str:
    lines = [
        f"{shape.name}: most tokens per second for at most ${budget:g} per hour",
        "workload      layout                    $/h    batch  ms/token  tokens/s  tokens/$  waits for   KV by",
    ]
    for work, choice in found:
        for each in (choice.together, choice.apart):
            if each is None:
                continue
            mark = "*" if each is choice.best else " "
            lines.append(
                f"{work.name:12} {mark}{each.layout.text:22} {each.dollars:6.2f} {each.batch:8.1f} "
                f"{each.step_s * 1000:9.1f} {each.tokens_s:9.0f} {each.tokens_dollar:9.0f}  {each.bound:10}  "
                f"{each.partition}"
            )
        lines.append(f"{'':12}  {_verdict(choice)}")
    return "\n".join(lines)


def _verdict(choice: Choice) -> str:
    if choice.together is None:
        return "without attention workers no request fits"
    if choice.apart is None:
        return "with attention workers nothing fits this price"
    gain = choice.apart.tokens_s / choice.together.tokens_s - 1
    per_dollar = choice.apart.tokens_dollar / choice.together.tokens_dollar - 1
    say = "stays together" if choice.declined else "attention workers pay"
    ratio = choice.apart.batch / choice.together.batch
    if choice.apart.layout.here:
        say += f" (--attention-here {choice.apart.layout.here})"
    return f"{say}: {gain:+.1%} tokens/s, {per_dollar:+.1%} tokens/$, batch {ratio:.2f} times as large when apart"
