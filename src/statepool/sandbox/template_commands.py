"""``statepool sandbox template …`` and ``bench``: look at kinds of sandboxes, try one, measure what it costs here."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from statepool.core.command import Adder, adder
from statepool.core.errors import InvalidRequest
from statepool.sandbox import remote_commands

__all__ = ["add"]

_MODULES = "import json as _json, sys as _sys\nprint(_json.dumps(sorted(_sys.modules)))"


def add(command: Adder) -> None:
    """Add the commands to the tree of ``statepool sandbox``."""
    sub = adder(command("template", "kinds of sandboxes: list, build, show", None))
    remote_commands.add_server(sub("list", "kinds that a server offers", _list))
    build = sub("build", "make a kind from its manifest, run a cell in it, and say what it costs", _build)
    build.add_argument("manifest", type=Path, help="manifest in TOML")
    build.add_argument("--trace", type=Path, metavar="FILE", help="run this code; name what it imports beyond preload")
    show = sub("show", "a manifest with everything it leaves to the defaults", _show)
    show.add_argument("manifest", type=Path, help="manifest in TOML")

    bench = command("bench", "what a kind of sandbox costs here: starts, many at once, forks", _bench)
    bench.add_argument("--template", type=Path, metavar="FILE", help="manifest in TOML (default: plain Python)")
    bench.add_argument("--starts", type=int, default=100, metavar="N", help="one after the other (default 100)")
    bench.add_argument("--burst", type=int, default=200, metavar="N", help="as fast as they come (default 200)")
    bench.add_argument("--at-once", type=int, default=64, metavar="N", help="callers of the burst (default 64)")
    bench.add_argument("--forks", type=int, default=64, metavar="N", help="of one sandbox (default 64)")
    for one in (build, bench):
        one.add_argument("--driver", default="auto", help="ns (root), userns (any user) or auto (default)")
        one.add_argument("--json", action="store_true", help="print plain values")


def _list(options: argparse.Namespace) -> int:
    for item in remote_commands.ask(options, "GET", "/templates"):
        print(f"{item['templateID']:<20} {item['memoryMB']:>6} MB  {item['cpuCount']} cores  {item['about']}")
    return 0


def _show(options: argparse.Namespace) -> int:
    from statepool.sandbox.template import Template

    template = Template.read(options.manifest)
    values = asdict(template) | {"sees": template.sources(), "variables": template.variables()}
    print(json.dumps(values, indent=2))
    return 0


def _build(options: argparse.Namespace) -> int:
    from statepool.sandbox.pool import Pool
    from statepool.sandbox.sandbox import Sandbox
    from statepool.sandbox.template import Template

    template = Template.read(options.manifest)
    code = None if options.trace is None else _read(options.trace)
    with Pool([template], driver=options.driver, low=0) as pool:
        began = time.perf_counter()
        pool.fill(template.name, 1)
        made = time.perf_counter() - began
        with Sandbox(template.name, pool=pool) as sandbox:
            before = set(json.loads(sandbox.run_code(_MODULES).logs.stdout))
            failed = None if code is None else sandbox.run_code(code).error
            after = set(json.loads(sandbox.run_code(_MODULES).logs.stdout))
        began = time.perf_counter()
        with Sandbox(template.name, pool=pool) as sandbox:
            sandbox.run_code("1 + 1")
            first = time.perf_counter() - began
            memory = sandbox.metrics().memory_bytes
    found = _imported(before, after)
    if failed is not None:
        print(f"{options.trace}: {failed.name}: {failed.value}", file=sys.stderr)
    values: dict[str, Any] = {
        "name": template.name,
        "seconds": made,
        "memory_bytes": memory,
        "start_seconds": first,
        "modules": len(before),
        "imports": found,
    }
    if options.json:
        print(json.dumps(values))
    else:
        print(f"{template.name}: made in {made:.2f} s, {len(before)} modules imported before a cell runs")
        print(f"create to first result {1e3 * first:.1f} ms, {memory / 1e6:.1f} MB of its own")
        if found:
            print(f"imported by {options.trace} beyond preload: {', '.join(found)}")
    return 1 if failed is not None else 0


def _bench(options: argparse.Namespace) -> int:
    from statepool.sandbox import trial
    from statepool.sandbox.pool import Pool
    from statepool.sandbox.template import Template

    for name in ("starts", "burst", "at_once", "forks"):
        if getattr(options, name) < 1:
            raise InvalidRequest(f"--{name.replace('_', '-')}: must be at least 1", param=name)
    template = Template() if options.template is None else Template.read(options.template)
    crowd = options.at_once
    with Pool([template], driver=options.driver, low=min(8, crowd), high=max(8, crowd), most=4 * crowd + 8) as pool:
        pool.fill(template.name, min(8, crowd))
        times = trial.starts(pool, template.name, options.starts)
        pool.fill(template.name, crowd)
        many = trial.burst(pool, template.name, options.burst, crowd)
        forked = trial.forks(pool, template.name, options.forks)
        driver = pool.driver
    values: dict[str, Any] = {
        "template": template.name,
        "driver": driver,
        "start_p50_ms": 1e3 * statistics.median(times),
        "start_p99_ms": 1e3 * trial.quantile(times, 0.99),
        "burst_per_second": many.per_second,
        "burst_p99_ms": 1e3 * trial.quantile(many.times, 0.99) if many.times else None,
        "burst_errors": len(many.errors),
        "forks_ms": 1e3 * forked,
    }
    if options.json:
        print(json.dumps(values))
    else:
        print(f"{template.name}, driver {driver}")
        print(
            f"create to first result   p50 {values['start_p50_ms']:.2f} ms, p99 {values['start_p99_ms']:.2f} ms, "
            f"of {options.starts}"
        )
        print(f"{options.burst} asked for by {crowd}    {many.per_second:.0f} a second, {len(many.errors)} errors")
        print(f"{options.forks} forks, all ready     {1e3 * forked:.1f} ms")
        for problem in sorted(set(many.errors)):
            print(problem, file=sys.stderr)
    return 1 if many.errors else 0


def _imported(before: set[str], after: set[str]) -> list[str]:
    """What a preload could name: modules that are new, without their parts and without what has no public name."""
    new = {name for name in after - before if not any(part.startswith("_") for part in name.split("."))}
    return sorted(name for name in new if name.rpartition(".")[0] not in new)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise InvalidRequest(f"--trace: {path}: {error.strerror}", param="trace") from None
