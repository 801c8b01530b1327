"""``statepool rollout …``: run an iteration, simulate one, decide again on a recorded one."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from statepool.core.command import adder, run

__all__ = ["main", "parser"]


def main(arguments: list[str]) -> int:
    """Run a command; returns 0, or 2 for what a user can repair."""
    return run("statepool rollout", parser().parse_args(arguments))


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    from statepool.rollout.policies import NAMES

    tree = argparse.ArgumentParser(
        prog="statepool rollout", description="Rollouts of groups of responses that all must finish."
    )
    command = adder(tree)
    live = command("run", "answer groups of prompts on several engines", _run)
    live.add_argument("config", type=Path, help="YAML or TOML with the settings of docs/rollout.md")
    live.add_argument("--policy", help=f"{', '.join(NAMES)}")
    live.add_argument("--drafts", help="group, self or off")
    live.add_argument("--engines", metavar="N", help="processes")
    live.add_argument("--ray", metavar="ADDRESS", help="of a Ray cluster that places them; auto, or local")
    live.add_argument("--seed", metavar="S", help="of the iteration")
    live.add_argument("--out", metavar="FILE", help="JSON lines, one per response")
    live.add_argument("--trace", metavar="FILE", help="JSON lines with the chunks of every response")
    live.add_argument("--plot", metavar="FILE", help="SVG of who ran where and when")
    live.add_argument("--journal", metavar="FOLDER", help="where a killed run goes on from")
    live.add_argument("--events", type=Path, metavar="FILE", help="every event and decision, for replay")
    live.add_argument("--timeline", type=Path, metavar="FILE", help="what runs where, as it happens, for the dashboard")
    live.add_argument("--json", action="store_true", help="print one JSON object")
    _add_sim(command("sim", "run an iteration on simulated engines, with the scheduler of the live ones", _sim))
    bench = command("bench", "run one iteration under several policies in turn and compare", _bench)
    bench.add_argument("config", type=Path, help="as for run; its policy and drafts are what is compared")
    bench.add_argument("--against", default="verl_group,verl_request", help="policies, with commas; /self adds drafts")
    bench.add_argument("--rounds", type=int, default=3, metavar="N", help="of all in turn; medians count (default 3)")
    bench.add_argument("--json", action="store_true", help="print one JSON object")
    fit = command("calibrate", "measure what a step of an engine costs", _calibrate)
    fit.add_argument("config", type=Path, help="as for run")
    fit.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON, for sim --profile")
    again = command("replay", "decide again on recorded events and compare every byte", _replay)
    again.add_argument("events", type=Path, help="file of run --events or sim --events")
    return tree


def _add_sim(sim: argparse.ArgumentParser) -> None:
    from statepool.rollout.policies import NAMES, ORACLES

    source = sim.add_mutually_exclusive_group(required=True)
    source.add_argument("--trace", type=Path, metavar="FILE", help="lengths of a recorded iteration (run --trace)")
    source.add_argument("--workload", choices=("qwen-vl", "moonlight"), help="a published one")
    sim.add_argument("--policy", default="auto", help=", ".join((*NAMES, *ORACLES)))
    sim.add_argument("--instances", type=int, metavar="N", help="engines (default 2, or the workload's)")
    sim.add_argument("--kv", type=float, metavar="TOKENS", help="KV of an engine (default 1e6, or the workload's)")
    sim.add_argument("--seats", type=int, default=256, metavar="N", help="sequences of an engine (default 256)")
    sim.add_argument(
        "--batched",
        type=int,
        metavar="TOKENS",
        help="plan every step as the engine does, on blocks, of so many at most",
    )
    sim.add_argument("--chunk", type=int, default=512, metavar="N", help="tokens of a chunk (default 512)")
    sim.add_argument("--drafts", choices=("off", "self", "group"), default="off", help="with the paper's acceptance")
    sim.add_argument("--profile", type=Path, metavar="FILE", help="step times of calibrate (default: the workload's)")
    sim.add_argument(
        "--correlation", type=float, default=0.65, metavar="R", help="of lengths in a group (default 0.65)"
    )
    sim.add_argument("--seed", type=int, default=0, metavar="S", help="of lengths and ties (default 0)")
    sim.add_argument("--events", type=Path, metavar="FILE", help="every event and decision, for replay")
    sim.add_argument("--plot", type=Path, metavar="FILE", help="SVG of who ran where and when")
    sim.add_argument("--json", action="store_true", help="print one JSON object")


def _run(options: argparse.Namespace) -> int:
    from statepool.kv.layout import BLOCK_SIZE
    from statepool.rollout.fleet import Fleet
    from statepool.rollout.live import default_chunk, rollout
    from statepool.rollout.report import summary
    from statepool.rollout.timeline import Timeline
    from statepool.rollout.trace import EventLog, draw, trace_line, write_trace
    from statepool.rollout.view import View

    config, engine, groups, problems = _read(options)
    chunk = config.chunk or default_chunk(groups)
    drafts = None if config.drafts == "off" else config.drafts
    with ExitStack() as stack:
        records: list[Any] = []
        answered = None
        if options.events is not None:
            header = {
                "policy": config.policy,
                "chunk": chunk,
                "seed": config.seed,
                "drafts": drafts,
                "block": BLOCK_SIZE,
            }
            records.append(EventLog(stack.enter_context(options.events.open("w")), header))
        if options.timeline is not None:
            options.timeline.parent.mkdir(parents=True, exist_ok=True)
            timeline = Timeline(stack.enter_context(options.timeline.open("w")), config.engines, config.policy)
            records.append(timeline.record)
            answered = timeline.answered
        fleet = stack.enter_context(
            Fleet(engine, config.engines, ray=config.ray, drafts=config.drafts, paths=config.paths, pin=config.pin)
        )
        view = stack.enter_context(View(sys.stderr))
        journal = Path(config.journal) if config.journal else None
        done = rollout(
            fleet,
            groups,
            policy=config.policy,
            chunk=chunk,
            seed=config.seed,
            journal=journal,
            on_progress=view.show,
            on_response=answered,
            record=(lambda *moment: [record(*moment) for record in records]) if records else None,
        )
    sizes = {group.id: (len(group.prompt), group.params.max_tokens) for group in groups}
    figures = summary(done, problems, _tasks(config.task))
    if config.out is not None:
        lines = [_answer(response, figures.scores) for response in done.responses]
        write_trace(Path(config.out), lines)
    if config.trace is not None:
        write_trace(Path(config.trace), [trace_line(r, *sizes[r.group]) for r in done.responses])
    if config.plot is not None:
        number = {group.id: i for i, group in enumerate(groups)}
        bars = [(number[r.group], chunk) for r in done.responses for chunk in r.chunks]
        title = f"{config.policy}, {len(done.responses)} responses, {done.tokens / done.seconds:.0f} tokens/s"
        Path(config.plot).write_text(draw(bars, config.engines, title))
    print(json.dumps(figures.as_json()) if options.json else figures.text())
    return 0


def _read(options: argparse.Namespace) -> tuple[Any, Any, Any, Any]:
    """The settings of an iteration and of its engines, its groups, and the problem behind each."""
    import os

    from statepool.core.config import Settings
    from statepool.engine.config import EngineConfig
    from statepool.engine.hub import resolve
    from statepool.engine.text.template import ChatTemplate
    from statepool.engine.text.tokenizer import Tokenizer
    from statepool.rollout.config import RolloutConfig, read_groups

    settings = Settings([RolloutConfig, EngineConfig])
    settings.read_file(options.config)
    settings.read_environment(os.environ)
    flags = vars(options) if options.command == "run" else {}
    settings.read_flags({name: value for name, value in flags.items() if name != "config"})
    config = settings.build(RolloutConfig)
    fixed: dict[str, Any] = {} if settings.source("threads") else {"threads": 1}
    engine = settings.build(EngineConfig, **fixed)
    model = resolve(engine.model)
    return config, engine, *read_groups(config, Tokenizer.load(model), ChatTemplate.load(model))


def _sim(options: argparse.Namespace) -> int:
    from statepool.rollout.study import Study, simulated

    study = Study(
        policy=options.policy,
        trace=options.trace,
        workload=options.workload,
        instances=options.instances,
        kv=None if options.kv is None else int(options.kv),
        seats=options.seats,
        batched=options.batched,
        chunk=options.chunk,
        drafts=None if options.drafts == "off" else options.drafts,
        profile=options.profile,
        correlation=options.correlation,
        seed=options.seed,
    )
    outcome, instances = simulated(study, options.events)
    if options.plot is not None:
        from statepool.rollout.trace import draw

        bars = [(study_group, chunk) for study_group, chunks in outcome.bars() for chunk in chunks]
        options.plot.write_text(draw(bars, instances, f"{options.policy}, {outcome.throughput:.0f} tokens/s"))
    figures = outcome.as_json()
    print(json.dumps(figures) if options.json else outcome.text())
    return 0


def _bench(options: argparse.Namespace) -> int:
    from statepool.rollout.compare import compare

    config, engine, groups, problems = _read(options)
    found = compare(config, engine, groups, problems, _tasks(config.task), options.against.split(","), options.rounds)
    if options.json:
        print(json.dumps([arm.as_json() for arm in found]))
        return 0
    best = found[0]
    for arm in found:
        print(f"{arm.name:24} {arm.median:8.0f} tokens/s   {best.median / arm.median:5.2f}x   {arm.last.text()}")
    return 0


def _calibrate(options: argparse.Namespace) -> int:
    from statepool.rollout.profile import measure

    _, engine, _, _ = _read(options)
    profile = measure(engine)
    options.out.write_text(json.dumps(profile.as_json(), indent=1) + "\n")
    print(profile.text())
    return 0


def _replay(options: argparse.Namespace) -> int:
    from statepool.rollout.trace import replay

    with options.events.open() as lines:
        count = replay(lines)
    print(f"{count} decisions, all as recorded")
    return 0


def _tasks(names: str | None) -> dict[str, Any]:
    from statepool.rollout.config import task_named

    return {name.strip(): task_named(name.strip()) for name in names.split(",")} if names else {}


def _answer(response: Any, scores: dict[tuple[str, int], float]) -> dict[str, Any]:
    line = {
        "group": response.group,
        "index": response.index,
        "text": response.text,
        "tokens": response.tokens,
        "logprobs": response.logprobs,
        "finish_reason": response.finish_reason,
        "version": response.version,
    }
    score = scores.get((response.group, response.index))
    return line if score is None else line | {"score": score}
