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
    live.add_argument("--seed", metavar="S", help="of the iteration")
    live.add_argument("--out", metavar="FILE", help="JSON lines, one per response")
    live.add_argument("--trace", metavar="FILE", help="JSON lines with the chunks of every response")
    live.add_argument("--plot", metavar="FILE", help="SVG of who ran where and when")
    live.add_argument("--journal", metavar="FOLDER", help="where a killed run goes on from")
    live.add_argument("--events", type=Path, metavar="FILE", help="every event and decision, for replay")
    live.add_argument("--json", action="store_true", help="print one JSON object")
    return tree


def _run(options: argparse.Namespace) -> int:
    import os

    from statepool.core.config import Settings
    from statepool.engine.config import EngineConfig
    from statepool.engine.hub import resolve
    from statepool.engine.text.template import ChatTemplate
    from statepool.engine.text.tokenizer import Tokenizer
    from statepool.rollout.config import RolloutConfig, read_groups
    from statepool.rollout.fleet import Fleet
    from statepool.rollout.live import rollout
    from statepool.rollout.report import summary
    from statepool.rollout.trace import EventLog, draw, trace_line, write_trace
    from statepool.rollout.view import View

    settings = Settings([RolloutConfig, EngineConfig])
    settings.read_file(options.config)
    settings.read_environment(os.environ)
    settings.read_flags({name: value for name, value in vars(options).items() if name != "config"})
    config = settings.build(RolloutConfig)
    defaults: dict[str, Any] = {} if settings.source("threads") else {"threads": 1}
    engine = settings.build(EngineConfig, **defaults)
    model = resolve(engine.model)
    tokenizer = Tokenizer.load(model)
    groups, problems = read_groups(config, tokenizer, ChatTemplate.load(model))
    with ExitStack() as stack:
        record = EventLog(stack.enter_context(options.events.open("w"))) if options.events else None
        fleet = stack.enter_context(Fleet(engine, config.engines, drafts=config.drafts, pin=config.pin))
        view = stack.enter_context(View(sys.stderr))
        journal = Path(config.journal) if config.journal else None
        done = rollout(
            fleet,
            groups,
            policy=config.policy,
            chunk=config.chunk,
            seed=config.seed,
            journal=journal,
            on_progress=view.show,
            record=record,
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
