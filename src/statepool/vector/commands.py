"""``statepool vector …``: build an index from an array, ask it, look at it, check it."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from statepool.core.errors import InvalidRequest, StatepoolError
from statepool.vector import Index, open, verify  # noqa: A004 - the name users know from files
from statepool.vector.native import DTYPES, METRICS

__all__ = ["main"]

LIMIT = 0.15
"""Relative error of a ratio up to which the simulator's projections are printed."""


def main(arguments: list[str]) -> int:
    """Run a command; returns 0, 1 if what was checked is damaged, 2 for what a user can repair."""
    options = parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except StatepoolError as error:
        print(f"statepool vector {options.command}: {error.message}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"statepool vector {options.command}: {error.strerror}: {error.filename}", file=sys.stderr)
        return 2
    return status


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    tree = argparse.ArgumentParser(prog="statepool vector", description="Search by meaning: a graph over vectors.")
    commands = tree.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")

    def command(name: str, text: str, run: Any) -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        found.set_defaults(run=run)
        return found

    build = command("build", "make an index of the rows of an array", _build)
    build.add_argument("rows", type=Path, help="[n, dim] as .npy, or .fvecs")
    build.add_argument("index", type=Path, help="file to write")
    build.add_argument("--ids", type=Path, help="int64 [n] as .npy (default 0 to n-1)")
    build.add_argument("--metric", choices=METRICS, default="cos")
    build.add_argument("--dtype", choices=DTYPES, default="f32", help="how vectors are stored (default f32)")
    build.add_argument("--degree", type=int, default=32, help="most neighbours of a row (default 32)")
    build.add_argument("--window", type=int, default=150, help="candidates its neighbours come from (default 150)")
    build.add_argument("--seed", type=int, default=0)
    build.add_argument("--threads", type=int, default=0, help="0 takes all cores")
    build.add_argument("--no-seal", action="store_true", help="leave out the one-bit codes: smaller and slower")
    search = command("search", "the nearest rows of every query, a JSON object a line", _search)
    search.add_argument("index", type=Path)
    search.add_argument("queries", type=Path, help="[n, dim] as .npy, or .fvecs")
    search.add_argument("-k", type=int, default=10, help="rows per query (default 10)")
    search.add_argument("--ef", type=int, help="candidates kept while searching (default max(64, 2k))")
    search.add_argument("--threads", type=_threads, default=1, help="of one query: a number or auto (default 1)")
    search.add_argument("--exact", action="store_true", help="look at every row")
    search.add_argument(
        "--recall", action="store_true", help="print only the share of the exact answers found, and the time"
    )
    for name, text, run in (
        ("stat", "figures of an index", _stat),
        ("verify", "check every byte of an index", _verify),
    ):
        command(name, text, run).add_argument("index", type=Path)
    sim = command("sim", "simulate one query on more threads than this machine has", _sim)
    sim.add_argument("index", type=Path, help="a saved index, not sealed")
    sim.add_argument("queries", type=Path, help="[n, dim] as .npy, or .fvecs")
    sim.add_argument("--count", type=int, default=60, help="queries used (default 60)")
    sim.add_argument(
        "--recall", type=float, default=0.99, help="recall at 10 all engines are compared at (default 0.99)"
    )
    sim.add_argument("--threads", default="4,8,16,32,64", help="simulated threads (default 4,8,16,32,64)")
    sim.add_argument("--anyway", action="store_true", help="print projections although the validation failed")
    return tree


def _build(options: argparse.Namespace) -> int:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    rows = read_vectors(options.rows)
    ids = None if options.ids is None else read_array(options.ids)
    index = Index(
        rows.shape[1], options.metric, options.dtype, R=options.degree, build_window=options.window, seed=options.seed
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task("linking", total=len(rows))
        index.build(rows, ids, threads=options.threads, progress=lambda done: bar.update(task, completed=done))
        if not options.no_seal:
            bar.update(task, description="sealing")
            index.seal(threads=options.threads)
    index.save(options.index)
    print(f"{options.index}: {len(index)} rows, {options.index.stat().st_size} bytes")
    return 0


def _search(options: argparse.Namespace) -> int:
    index = open(options.index)
    queries = read_vectors(options.queries)
    found, spent = 0, 0.0
    for query in queries:
        started = time.perf_counter()
        answer = (
            index.exact(query, options.k)
            if options.exact
            else index.search(query, options.k, options.ef, threads=options.threads)
        )
        spent += time.perf_counter() - started
        if options.recall:
            found += len(np.intersect1d(answer.ids, index.exact(query, options.k).ids))
        else:
            print(json.dumps({"ids": answer.ids.tolist(), "distances": answer.distances.tolist()}))
    if options.recall:
        wanted = len(queries) * min(options.k, len(index))
        print(f"recall@{options.k} {found / wanted:.4f}, {spent / len(queries) * 1e6:.0f} us per query")
    return 0


def _stat(options: argparse.Namespace) -> int:
    for name, value in open(options.index).stats().items():
        print(f"{name:13} {value}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    report = verify(options.index)
    for section, offset in report.damaged:
        print(f"{options.index}: {section}: the 64 KiB at byte {offset} are damaged")
    if report.ok:
        print(f"{options.index}: {report.rows} rows, {report.nbytes} bytes, no damage")
    return 0 if report.ok else 1


def _sim(options: argparse.Namespace) -> int:
    from statepool.vector.sim.study import Study

    queries = read_vectors(options.queries)
    if len(queries) < 2:
        raise InvalidRequest("queries: must be an array [n, dim] with at least 2 rows", param="queries")
    index = open(options.index)
    if not isinstance(index, Index):
        raise InvalidRequest(f"{options.index}: has changes in its log; compact it first")
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


def read_array(path: Path) -> np.ndarray:
    """An array from a ``.npy`` file.

    Raises:
        InvalidRequest: it is none.
    """
    try:
        found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InvalidRequest(f"{path}: is no .npy file ({error})") from error
    return found


def read_vectors(path: Path) -> np.ndarray:
    """Vectors [n, dim] from a ``.npy`` file, or from ``.fvecs``: per row its length as int32, then float32 values.

    Raises:
        InvalidRequest: it is neither, or holds no rows.
    """
    if path.suffix != ".fvecs":
        found = read_array(path)
        if found.ndim != 2 or not len(found):
            raise InvalidRequest(f"{path}: holds an array of shape {found.shape}; rows [n, dim] are needed")
        return found
    raw = np.fromfile(path, "<i4")
    width = int(raw[0]) + 1 if len(raw) else 0
    if width < 2 or len(raw) % width or (raw[::width] != width - 1).any():
        raise InvalidRequest(f"{path}: is no .fvecs file, or its rows differ in length")
    return raw.reshape(-1, width)[:, 1:].view("<f4")


def _threads(text: str) -> int | str:
    return "auto" if text == "auto" else int(text)
