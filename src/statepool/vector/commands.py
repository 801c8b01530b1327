"""``statepool vector …``: build an index from an array, change it, ask it, look at it, check it."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, get_args

import numpy as np

from statepool.core.command import adder, run, serve
from statepool.core.errors import InvalidRequest
from statepool.vector import Index, open, verify  # noqa: A004 - the name users know from files
from statepool.vector.check import within
from statepool.vector.log import LEVELS
from statepool.vector.native import DTYPES, METRICS
from statepool.vector.sources import Source, read_columns, read_ids, read_rows, read_vectors

__all__ = ["main"]

_AT_ONCE = 1000
"""Rows of one change."""


def main(arguments: list[str]) -> int:
    """Run a command; returns 0, 1 if what was checked is damaged, 2 for what a user can repair."""
    return run("statepool vector", parser().parse_args(arguments))


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    tree = argparse.ArgumentParser(prog="statepool vector", description="Search by meaning: a graph over vectors.")
    command = adder(tree)
    build = command("build", "make an index of the rows of an array", _build)
    build.add_argument("rows", type=Path, help="[n, dim] as .npy, or .fvecs")
    build.set_defaults(source=None)
    convert = command("convert", "make an index of what another program wrote", _build)
    convert.add_argument("--from", dest="source", choices=get_args(Source), required=True)
    convert.add_argument("rows", type=Path, help="the file; its graph, if it has one, is not taken over")
    for one in (build, convert):
        _add_build(one)
    add = command("add", "add rows to an index; each thousand is in its log before the next", _add)
    add.add_argument("index", type=Path)
    add.add_argument("rows", type=Path, help="[n, dim] as .npy, or .fvecs")
    add.add_argument("--ids", type=Path, help="int64 [n] as .npy, or a text per line (default: on from the largest)")
    add.add_argument(
        "--columns", type=Path, metavar="FILE", help="a JSON object per row, with a value for every column"
    )
    add.add_argument("--update", action="store_true", help="replace rows whose ids are there already")
    add.add_argument("--durability", choices=LEVELS, default="power", help="default power")
    compact = command("compact", "write index and log into one new file", _compact)
    compact.add_argument("index", type=Path)
    compact.add_argument("--threads", type=int, default=0, help="0 takes all cores")
    search = command("search", "the nearest rows of every query, a JSON object a line", _search)
    search.add_argument("index", type=Path)
    search.add_argument("queries", type=Path, help="[n, dim] as .npy, or .fvecs")
    search.add_argument("-k", type=int, default=10, help="rows per query (default 10)")
    search.add_argument("--ef", type=int, help="candidates kept while searching (default max(64, 2k))")
    search.add_argument("--threads", type=_threads, default=1, help="of one query: a number or auto (default 1)")
    search.add_argument("--filter", metavar="JSON", help='only rows that pass, such as {"lang": "de"}')
    search.add_argument("--exact", action="store_true", help="look at every row")
    search.add_argument(
        "--recall", action="store_true", help="print only the share of the exact answers found, and the time"
    )
    server = command("serve", "serve an index over HTTP: search, add, update, delete", _serve)
    server.add_argument("index", type=Path)
    server.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    server.add_argument("--port", type=int, default=8300, help="port to listen on (default 8300; 0: a free one)")
    server.add_argument("--api-key", help="key every request must carry (default none)")
    server.add_argument("--read-only", action="store_true", help="take no changes; others may open the index too")
    server.add_argument("--durability", choices=LEVELS, default="power", help="of changes (default power)")
    server.add_argument("--workers", type=int, default=0, help="queries searched at once (default 0: all cores)")
    server.add_argument("--with-parent", action="store_true", help="end when the process that started it ends")
    bench = command("bench", "recall and time of an index on queries of yours, a line per ef", _bench)
    bench.add_argument("index", type=Path)
    bench.add_argument("queries", type=Path, help="[n, dim] as .npy, or .fvecs")
    bench.add_argument("-k", type=int, default=10, help="rows per query (default 10)")
    bench.add_argument("--ef", type=_numbers, default="10,20,40,80,160,320", help="candidates kept, with commas")
    bench.add_argument("--threads", type=_threads, default=1, help="of one query: a number or auto (default 1)")
    bench.add_argument("--filter", metavar="JSON", help="only rows that pass")
    bench.add_argument("--repeats", type=int, default=3, help="of all queries; the least time counts (default 3)")
    for name, text, what in (
        ("stat", "figures of an index", _stat),
        ("verify", "check every byte of an index", _verify),
    ):
        command(name, text, what).add_argument("index", type=Path)
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


def _add_build(build: argparse.ArgumentParser) -> None:
    build.add_argument("index", type=Path, help="file to write")
    build.add_argument("--ids", type=Path, help="as for add (default: those of the file, or 0 to n-1)")
    build.add_argument("--metric", choices=METRICS, default="cos")
    build.add_argument("--dtype", choices=DTYPES, default="f32", help="how vectors are stored (default f32)")
    build.add_argument("--degree", type=int, default=32, help="most neighbours of a row (default 32)")
    build.add_argument("--window", type=int, default=150, help="candidates its neighbours come from (default 150)")
    build.add_argument("--seed", type=int, default=0)
    build.add_argument("--threads", type=int, default=0, help="0 takes all cores")
    build.add_argument("--no-seal", action="store_true", help="leave out the one-bit codes: smaller and slower")
    build.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="NAME=TYPE",
        help="a column of str, i64 or f64; may be repeated",
    )
    build.add_argument(
        "--columns", type=Path, metavar="FILE", help="a JSON object per row, with a value for every column"
    )


@contextmanager
def _progress(text: str, total: int) -> Iterator[Callable[[int, str], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(text, total=total)
        yield lambda done, now: bar.update(task, completed=done, description=now)


def _build(options: argparse.Namespace) -> int:
    if options.source is None:
        rows, ids = read_vectors(options.rows), None
    else:
        rows, ids = read_rows(options.rows, options.source)
    if options.ids is not None:
        ids = read_ids(options.ids)
    index = Index(
        rows.shape[1],
        options.metric,
        options.dtype,
        R=options.degree,
        build_window=options.window,
        seed=options.seed,
        columns=dict(_column(text) for text in options.column),
    )
    values = None if options.columns is None else read_columns(options.columns)
    with _progress("linking", len(rows)) as tell:
        index.build(rows, ids, columns=values, threads=options.threads, progress=lambda done: tell(done, "linking"))
        if not options.no_seal:
            tell(len(rows), "sealing")
            index.seal(threads=options.threads)
    index.save(options.index)
    print(f"{options.index}: {len(index)} rows, {options.index.stat().st_size} bytes")
    return 0


def _add(options: argparse.Namespace) -> int:
    rows = read_vectors(options.rows)
    values = {} if options.columns is None else read_columns(options.columns)
    for column in values.values():
        if len(column) != len(rows):
            raise InvalidRequest(f"columns: {options.columns} has {len(column)} lines, {options.rows} {len(rows)} rows")
    with open(options.index, "rw", durability=options.durability) as index:
        there = index.ids()
        if options.ids is None and index.settings.text_ids:
            raise InvalidRequest(f"ids: {options.index} has text ids; give --ids with a text per line", param="ids")
        if options.ids is None:
            first = int(there.max()) + 1 if len(there) else 0
            ids = np.arange(first, first + len(rows))
        else:
            ids = index.checked(read_ids(options.ids), len(rows))
        if not options.update and len(taken := np.intersect1d(ids, there)):
            raise InvalidRequest(f"ids: {taken[0]} is in the index already; --update replaces it", param="ids")
        with _progress("adding", len(rows)) as tell:
            for at in range(0, len(rows), _AT_ONCE):
                part = slice(at, at + _AT_ONCE)
                old = np.isin(ids[part], there)
                for chosen in (old, ~old):
                    columns = {n: [v for v, one in zip(c[part], chosen, strict=True) if one] for n, c in values.items()}
                    if not chosen.any():
                        continue
                    if chosen is old:
                        index.update(ids[part][chosen], rows[part][chosen], columns=columns)
                    else:
                        index.add(rows[part][chosen], ids[part][chosen], columns=columns)
                tell(min(at + _AT_ONCE, len(rows)), "adding")
        print(f"{options.index}: {len(index)} rows, {len(rows)} of them new or replaced")
    return 0


def _compact(options: argparse.Namespace) -> int:
    with open(options.index, "rw") as index:
        changed = index.stats()["changed"] + index.stats()["gone"]
        with _progress("building", 1):
            index.compact(threads=options.threads)
        print(f"{options.index}: {len(index)} rows, {changed} changes written, {options.index.stat().st_size} bytes")
    return 0


def _column(text: str) -> tuple[str, Any]:
    name, sign, kind = text.partition("=")
    if not sign:
        raise InvalidRequest(f"column: '{text}' is not NAME=TYPE", param="column")
    return name, kind


def _filter(text: str | None) -> Any:
    try:
        return None if text is None else json.loads(text)
    except ValueError as error:
        raise InvalidRequest(f"filter: is no JSON ({error})", param="filter") from error


def _search(options: argparse.Namespace) -> int:
    index = open(options.index)
    queries, chosen = read_vectors(options.queries), _filter(options.filter)
    found, wanted, spent = 0, 0, 0.0
    for query in queries:
        started = time.perf_counter()
        answer = (
            index.exact(query, options.k, filter=chosen)
            if options.exact
            else index.search(query, options.k, options.ef, threads=options.threads, filter=chosen)
        )
        spent += time.perf_counter() - started
        if options.recall:
            truth = index.exact(query, options.k, filter=chosen).ids
            found += len(np.intersect1d(answer.ids, truth))
            wanted += len(truth)
        else:
            print(json.dumps({"ids": answer.ids.tolist(), "distances": answer.distances.tolist()}))
    if options.recall:
        print(f"recall@{options.k} {found / max(1, wanted):.4f}, {spent / len(queries) * 1e6:.0f} us per query")
    return 0


def _serve(options: argparse.Namespace) -> int:
    from statepool.core.sockets import listen_at
    from statepool.vector.serving import create_app
    from statepool.web import HttpServer

    within("workers", options.workers, 0, 1024)
    with ExitStack() as stack:
        index = (
            open(options.index)
            if options.read_only
            else stack.enter_context(open(options.index, "rw", durability=options.durability))
        )
        listener = listen_at(options.host, options.port, "another --port", "port")
        app = create_app(index, options.index, api_key=options.api_key, workers=options.workers)
        server = HttpServer(app, listener)
        return serve(server, lambda: f"vector server at {server.url}: {len(index)} rows", options.with_parent)


def _bench(options: argparse.Namespace) -> int:
    index, chosen = open(options.index), _filter(options.filter)
    queries, widths = read_vectors(options.queries), [ef for ef in options.ef if ef >= options.k]
    within("repeats", options.repeats, 1, 1000)
    if not widths:
        raise InvalidRequest(f"ef: none is {options.k} (k) or more", param="ef")
    truth = [index.exact(query, options.k, filter=chosen).ids for query in queries]
    wanted = max(1, sum(map(len, truth)))
    print(f"{len(index)} rows, {len(queries)} queries, k {options.k}, threads {options.threads}, path ", end="")
    print(index.search(queries[0], options.k, widths[0], threads=options.threads, filter=chosen).stats.path)
    print(f"{'ef':>6} {'recall':>7} {'mean us':>8} {'p50 us':>8} {'p99 us':>8} {'distances':>9}")
    for ef in widths:
        least, hits, distances = np.full(len(queries), np.inf), 0, 0
        for repeat in range(options.repeats):
            for number, query in enumerate(queries):
                started = time.perf_counter_ns()
                found = index.search(query, options.k, ef, threads=options.threads, filter=chosen)
                least[number] = min(least[number], (time.perf_counter_ns() - started) / 1e3)
                if repeat == 0:
                    hits += len(np.intersect1d(found.ids, truth[number]))
                    distances += found.stats.ndc
        p50, p99 = np.percentile(least, [50, 99])
        figures = f"{hits / wanted:7.4f} {least.mean():8.1f} {p50:8.1f} {p99:8.1f} {distances / len(queries):9.0f}"
        print(f"{ef:6} {figures}", flush=True)
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
    from statepool.vector.sim.study import LIMIT, Study, compare

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
    found = []
    for threads in map(int, options.threads.split(",")):
        found.append(study.project(costs, threads, options.recall))
        text = "  ".join(f"{name} {ns / 1e3:.1f}" for name, ns in found[-1].nanoseconds.items())
        print(f"p={threads:<3} {text or 'no engine reaches the recall'}", flush=True)
    if (best := compare(found)) is not None:
        (mine, count), (rival, threads) = best.mine, best.rival
        print(f"simulated: async {mine / 1e3:.1f} µs with {count} threads, iqan {rival / 1e3:.1f} µs with {threads}")
        print(f"simulated: least latency {best.latency:.2f}x lower, throughput {best.throughput:.2f}x at iqan's least")
    return 0


def _numbers(text: str) -> list[int]:
    return [int(one) for one in text.split(",")]


def _threads(text: str) -> int | str:
    return "auto" if text == "auto" else int(text)
