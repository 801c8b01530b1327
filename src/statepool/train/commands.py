"""``statepool train CONFIG`` and ``statepool eval``: train on a task, and see how well a model does on it."""

from __future__ import annotations

import argparse
import json
import os
from contextlib import closing
from pathlib import Path
from typing import Any

from statepool.core.command import run
from statepool.core.errors import InvalidConfig

__all__ = ["main"]

_SETTABLE = ("model", "out", "seed", "steps", "threads", "isolation", "target")


def main(arguments: list[str]) -> int:
    """Run ``train`` or ``eval``, named by the first argument; returns the exit status."""
    name, rest = arguments[0], arguments[1:]
    if name == "train" and rest[:1] == ["pretrain"]:
        name, rest = "pretrain", rest[1:]
    tree, action = {
        "train": (_train_parser, _train),
        "eval": (_eval_parser, _eval),
        "pretrain": (_pretrain_parser, _pretrain),
    }[name]
    parser = tree()
    options = parser.parse_args(rest)
    options.command, options.run = name, action
    return run("statepool", options)


def _train_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="statepool train",
        description="Train a model on a task by imitation and reinforcement; a second run goes on where the first "
        "stopped. `statepool train pretrain --help`: how the bundled model was made.",
    )
    parser.add_argument("config", type=Path, help="settings in YAML or TOML; see docs/train.md")
    parser.add_argument("--model", help="folder, hub id or tiny, instead of the file's")
    parser.add_argument("--out", help="folder of the run, instead of the file's")
    parser.add_argument("--seed", type=int, help="seed, instead of the file's")
    parser.add_argument("--steps", type=int, help="steps of GRPO, instead of the file's")
    parser.add_argument("--target", type=float, help="stop at this share of held-out problems solved")
    parser.add_argument("--threads", type=int, help="threads of engine and trainer")
    parser.add_argument("--isolation", help="where tools run: sandbox (default) or process")
    parser.add_argument("--fresh", action="store_true", help="begin anew, whatever is in the folder")
    return parser


def _train(options: argparse.Namespace) -> int:
    # torch's threads wait by spinning. Beside tools, or anybody's work, that takes the cores from those waited for:
    # a step was ten times slower. To be said before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from statepool.train.config import read
    from statepool.train.report import Report
    from statepool.train.run import Run

    config = read(options.config, {name: getattr(options, name) for name in _SETTABLE})
    with closing(Run(config, options.fresh)) as training:
        report = Report(training.out, config.train.tensorboard, config.train.wandb, config.plain())
        with closing(report):
            if training.step:
                report.say(f"going on from step {training.step} of {training.last} in {training.out}")
            training.go(report)
    print(training.out / "model")
    return 0


def _eval_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="statepool eval", description="Answer held-out problems of a task and count what is right."
    )
    parser.add_argument("model", nargs="?", default="tiny", help="folder, hub id or tiny (default)")
    parser.add_argument("--task", help="name of a task, or module:Class")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the task")
    parser.add_argument("--count", type=int, default=128, help="problems (default 128)")
    parser.add_argument("--seed", type=int, default=0, help="of the problems (default 0)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default) is greedy")
    parser.add_argument("--turns", type=int, default=6, help="most turns of a conversation (default 6)")
    parser.add_argument("--turn-tokens", type=int, default=256, help="most tokens of a turn (default 256)")
    parser.add_argument("--quant", default="fp32", help="arithmetic of the engine (default fp32)")
    parser.add_argument("--threads", type=int, help="threads of the engine")
    parser.add_argument("--isolation", default="sandbox", help="where tools run: sandbox (default) or process")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print so many conversations")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--list", action="store_true", help="name the tasks and end")
    return parser


def _eval(options: argparse.Namespace) -> int:
    from statepool.tasks.catalog import find, names

    if options.list:
        print("\n".join(names()))
        return 0
    if options.task is None:
        raise InvalidConfig(f"--task is missing; known are {', '.join(names())}", param="task")
    from statepool.train.measure import measure

    found = measure(find(options.task, _pairs(options.set)), options)
    if options.json:
        print(json.dumps(found.record()))
    else:
        print(found.text(options.show))
    return 0


def _pairs(texts: list[str]) -> dict[str, Any]:
    import yaml

    pairs: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InvalidConfig(f"--set takes NAME=VALUE, got {text!r}", param="set")
        pairs[name] = yaml.safe_load(value)
    return pairs


def _pretrain_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="statepool train pretrain",
        description="Train the bundled model from nothing on synthetic tasks, then evaluate it.",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, curve and tokenizer")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and data (default 0)")
    parser.add_argument("--steps", type=int, help="stop after this step of the recipe")
    parser.add_argument("--minutes", type=float, help="stop after this time")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--threads", type=int, default=1, help="threads for torch (default 1)")
    parser.add_argument("--eval-only", action="store_true", help="do not train; evaluate the checkpoint")
    parser.add_argument("--export", type=Path, help="write the model here in the Hugging Face layout")
    parser.add_argument("--count", type=int, default=50, help="problems per family and size (default 50)")
    return parser


def _pretrain(options: argparse.Namespace) -> int:
    import torch

    from statepool.train import evaluate as judge
    from statepool.train import pretrain as recipe
    from statepool.train.export import export as write

    torch.set_num_threads(options.threads)
    chosen = recipe.Recipe(seed=options.seed)
    if options.eval_only:
        made = recipe.Run(chosen, options.out, resume=True)
    else:
        made = recipe.pretrain(chosen, options.out, resume=options.resume, steps=options.steps, minutes=options.minutes)
    if options.export is not None:
        write(made.model, made.corpus.tokenizer, options.export)
        print(f"wrote {options.export}")
    for quantise in (False, True) if options.count else ():
        for row in judge.evaluate(made.model, made.corpus, options.count, quantise):
            print(json.dumps({"numbers": "int8" if quantise else "fp32", **row}))
    return 0
