"""``python -m bench [ROOM] [--only ID,…] [--quick] [--json FILE]``: measure, print, write docs/benchmarks.md."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from pathlib import Path

from bench import machine, report
from bench.row import Row, merge

ROOMS = ("engine", "store", "vector", "attention", "serve", "lamina", "sandbox", "rollout", "train", "seq", "topo")
RESULTS = Path(__file__).with_name("results")


def main(arguments: list[str] | None = None) -> int:
    """Run one room; 0 when its rows were written, 2 for a room without benchmarks."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("room", nargs="?", default="engine", choices=ROOMS)
    parser.add_argument("--only", default="", help="comma-separated ids, e.g. E1,E4")
    parser.add_argument("--quick", action="store_true", help="two short pairs per row: a first look, not a result")
    parser.add_argument("--favour", action="store_true", help="starve everybody else meanwhile (needs root)")
    parser.add_argument("--json", type=Path, help="where rows go (default: bench/results/ROOM.json and the docs page)")
    parser.add_argument("--report", action="store_true", help="only write docs/benchmarks.md again from the results")
    options = parser.parse_args(arguments)
    if options.report:
        report.write(RESULTS)
        return 0
    target = options.json or RESULTS / f"{options.room}.json"
    if options.quick and not options.json:
        parser.error("--quick gives no result worth keeping: name a file with --json")
    room = importlib.import_module(f"bench.{options.room}")
    about, at = machine.describe(), machine.stamp()
    only = [name for name in options.only.split(",") if name]
    # A stopped run must not leave favoured engines behind: the exception ends them on its way out.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with machine.favoured(options.favour):
        for row in room.run(only, options.quick):
            row.at = at
            merge(target, options.room, about, [row])
            print(_line(row), flush=True)
    if not options.json:
        report.write(RESULTS)
    return 0


def _line(row: Row) -> str:
    value = "–" if row.value is None else f"{row.value:.4g} {row.unit}"
    verdict = {True: "pass", False: "MISS", None: "none"}[row.passed]
    share = "" if row.limit is None else f", {row.limit:.0%} of bound"
    noisy = ", noisy" if row.load.get("noisy") else ""
    sides = f" ({row.own}" + (f" against {row.peer_value:.4g} {row.peer_unit}" if row.peer_value else "") + ")"
    return f"{row.id:4} {verdict} {value:>12}  target {row.target:g}{share}{noisy}  {row.what}{sides} {row.note}"


if __name__ == "__main__":
    raise SystemExit(main())
