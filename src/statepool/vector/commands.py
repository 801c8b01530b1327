"""``statepool vector …``: commands of the room."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from statepool.core.errors import InvalidRequest, StatepoolError

from .index import Index

__all__ = ["main"]

LIMIT = 0.15
"""Relative error of a ratio up to which the simulator's projections are printed."""


def main(arguments: list[str]) -> int:
    """Run a command; returns 0, 1 if what was checked does not hold, 2 for what a user can repair."""
    options = parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except StatepoolError as error:
        print(f"statepool vector {options.command}: {error.message}", file=sys.stderr)
        return 2
    except FileNotFoundError as error:
        print(f"statepool vector {options.command}: {error.strerror}: {error.filename}", file=sys.stderr)
        return 2
    return status


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    tree = argparse.ArgumentParser(prog="statepool vector", description="Search over vectors.")
    commands = tree.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    sim = commands.add_parser("sim", help="simulate one query on more threads than this machine has")
    sim.set_defaults(run=_sim)
    sim.add_argument("index", type=Path, help="a saved index, not sealed")
    sim.add_argument("queries", type=Path, help="float array [n, dim] in a .npy file")
    sim.add_argument("--count", type=int, default=60, help="queries used (default 60)")
    sim.add_argument(
        "--recall", type=float, default=0.99, help="recall at 10 all engines are compared at (default 0.99)"
    )
    sim.add_argument("--threads", default="4,8,16,32,64", help="simulated threads (default 4,8,16,32,64)")
    sim.add_argument("--anyway", action="store_true", help="print projections although the validation failed")
    return tree


def _sim(options: argparse.Namespace) -> int:
    from .sim.study import Study

    queries = np.load(options.queries, allow_pickle=False)
    if queries.ndim != 2 or len(queries) < 2:
        raise InvalidRequest("queries: must be an array [n, dim] with at least 2 rows", param="queries")
    index = Index.load(options.index)
    half = min(options.count, len(queries) // 2)
    costs = Study(index, queries[half : 2 * half]).calibrate()
    print("calibrated on this machine, ns: " + ", ".join(f"{n} {getattr(costs, n):.0f}" for n in costs.__slots__))
    study = Study(index, queries[:half])
    worst = 0.0
    for check in study.validate(costs):
        print(f"p={check.threads} {check.engine:10} measured {check.measured:.2f}  simulated {check.simulated:.2f}")
        worst = max(worst, check.error)
    print(f"largest error {worst:.0%} (limit {LIMIT:.0%})")
    if worst > LIMIT and not options.anyway:
        print("no projections: the simulator does not describe this machine now (is it busy?)", file=sys.stderr)
        return 1
    print(f"simulated µs at recall {options.recall}")
    for threads in map(int, options.threads.split(",")):
        row = {"iqan": study.tuned(costs, threads, options.recall)}
        row |= {e: study.at_recall(costs, e, threads, options.recall) for e in ("edge", "nosync", "async", "roles")}
        text = "  ".join(f"{name} {'–' if ns is None else f'{ns / 1e3:.1f}'}" for name, ns in row.items())
        print(f"p={threads:<3} {text}", flush=True)
    return 0
