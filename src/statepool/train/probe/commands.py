"""``statepool probe``: train the small retrieval model, and count its right answers under any attention."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from statepool.core.command import adder, run
from statepool.core.errors import InvalidConfig

__all__ = ["main"]

_EVALUATED = (
    "full",
    "wave",
    "wave:tokens_per_cluster=8",
    "wave:tokens_per_cluster=4",
    "wave:estimator=diag2",
    "wave:paper,update_segment=256",
    "wave:estimate=0",
)


def main(arguments: list[str]) -> int:
    """Run ``train`` or ``eval``; returns the exit status."""
    tree = argparse.ArgumentParser(prog="statepool probe", description="A small retrieval model and its judge.")
    command = adder(tree)
    train = command("train", "train the probe model: a few minutes on one core", _train)
    train.add_argument("--out", type=Path, required=True, help="folder for model and curve.jsonl")
    train.add_argument("--seed", type=int, default=0, help="of weights and texts (default 0)")
    train.add_argument(
        "--attention", default="full", help="full (default), or moba as for serve, e.g. moba:block=32,last=1"
    )
    train.add_argument(
        "--full",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="of a stage's steps, its last, that attend fully (default 0.1)",
    )
    train.add_argument(
        "--longest", type=int, default=2048, metavar="N", help="leave out stages of longer texts (default 2048)"
    )
    train.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    judge = command("eval", "count right answers under each kind of attention", _eval)
    judge.add_argument("model", nargs="?", default="probe", help="probe (default), tiny, or a folder that either wrote")
    judge.add_argument(
        "--attention",
        action="append",
        metavar="KIND",
        help="full, as for serve, or oracle, quest, moba-gate, streaming, random; may come again (default: a choice)",
    )
    judge.add_argument(
        "--retrieve",
        type=float,
        default=0.018,
        metavar="SHARE",
        help="of the clusters, that are read whole (default 0.018)",
    )
    judge.add_argument("--length", type=int, default=2048, metavar="N", help="tokens of a text (default 2048)")
    judge.add_argument("--count", type=int, default=24, metavar="N", help="texts (default 24)")
    judge.add_argument("--json", action="store_true", help="print one JSON object a kind")
    return run("statepool probe", tree.parse_args(arguments))


def _train(options: argparse.Namespace) -> int:
    import torch

    from statepool.train.probe import recipe
    from statepool.train.probe.export import export
    from statepool.train.torch_model import Qwen3

    torch.set_num_threads(options.threads)
    stages = tuple(stage for stage in recipe.STAGES if stage.length <= options.longest)
    wanted = recipe.Recipe(options.seed, stages=stages, attention=options.attention, full=options.full)
    model = Qwen3(wanted.shape, wanted.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "curve.jsonl").open("w", encoding="utf-8") as curve:
        for step in recipe.train(wanted, model):
            line = {"step": step.number, "length": step.length, "tokens": step.tokens, "loss": round(step.loss, 5)}
            print(json.dumps(line), file=curve, flush=True)
            if step.number % recipe.WINDOW == 0:
                print(f"step {step.number}: texts of {step.length} tokens, loss {step.loss:.4f}", file=sys.stderr)
    export(model, options.out)
    print(options.out)
    return 0


def _eval(options: argparse.Namespace) -> int:
    from statepool.train.probe.judge import engine_of, questions, score
    from statepool.train.probe.rivals import RIVALS

    if options.count < 1:
        raise InvalidConfig(f"--count must be at least 1, got {options.count}", param="count")
    asked = questions(options.model, options.count, options.length)
    for name in options.attention or (*_EVALUATED, *RIVALS):
        found = score(name, engine_of(options.model, name, options.retrieve), asked)
        if options.json:
            print(json.dumps({"attention": name, "right": found.right, "answers": found.answers, "share": found.share}))
        else:
            print(f"{found.share:7.2%}  {found.right} of {found.answers}  {name}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
