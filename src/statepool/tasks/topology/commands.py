"""``statepool topo …``: census, slopes, 2-handles, distances, verdicts, scans, certificates, pictures."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from statepool.core.command import adder, run
from statepool.core.errors import InvalidRequest
from statepool.tasks.topology.errors import InvalidCurve

if TYPE_CHECKING:
    from statepool.tasks.topology.boundary import Boundary, Slope
    from statepool.tasks.topology.scans import Progress

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Run a command; returns 0, 1 for a refused certificate or a breached theorem, 2 for what a user can repair."""
    return run("statepool topo", parser().parse_args(arguments))


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    tree = argparse.ArgumentParser(
        prog="statepool topo", description="Handle additions on simple 3-manifolds, certified."
    )
    command = adder(tree)
    census = command("census", "list manifolds with geodesic boundary by size", _census)
    census.add_argument("--tets", type=int, required=True, help="tetrahedra")
    census.add_argument("--edges", type=int, default=1, help="edges (default 1); the genus is tets + 1 - edges")
    census.add_argument("--count", action="store_true", help="only say how many")
    census.add_argument("--limit", type=int, help="stop after so many")
    census.add_argument("--time", type=float, metavar="SECONDS", help="end the search after so long")

    slopes = command("slopes", "list slopes of the boundary, those that cross the model least first", _slopes)
    _add_manifold(slopes)
    slopes.add_argument("--limit", type=int, default=20, help="default 20")
    slopes.add_argument("--nonseparating", action="store_true", help="those that do not separate the boundary")

    add = command("add", "attach a 2-handle along a slope and print the triangulation", _add)
    _add_manifold(add)
    _add_weights(add)

    decide = command("decide", "attach a 2-handle and say what it makes, with a certificate", _decide)
    _add_manifold(decide)
    _add_weights(decide)
    _add_effort(decide)
    decide.add_argument("--certificate", type=Path, metavar="FILE", help="append the certificate here")
    decide.add_argument("--names", action="store_true", help="also ask SnapPy for names (boundaries that are all tori)")
    decide.add_argument(
        "--double", type=float, metavar="SECONDS", help="also ask Regina whether the double is irreducible (no proof)"
    )
    decide.add_argument("--deep", action="store_true", help="also ask Regina for a compressing disc, 60 s at most")

    distance = command("distance", "least number of crossings of two slopes on the closed boundary", _distance)
    _add_manifold(distance)
    for name in ("one", "two"):
        distance.add_argument(name, help="weights, such as 0,2,2,4")

    scan = command("scan", "decide many slopes of many manifolds; a second run goes on where the first stopped", _scan)
    scan.add_argument("--census", action="append", default=[], metavar="TETS:EDGES", help="a census; may be repeated")
    scan.add_argument("--manifolds", type=Path, metavar="FILE", help="isomorphism signatures, one a line")
    scan.add_argument("--limit", type=int, help="at most so many manifolds of each source")
    scan.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSONL of certificates")
    scan.add_argument("--parquet", type=Path, metavar="FILE", help="also write a table of the slopes")
    scan.add_argument("--slopes", type=int, default=40, help="per manifold (default 40)")
    scan.add_argument("--nonseparating", action="store_true", help="slopes that do not separate the boundary")
    scan.add_argument("--workers", type=int, default=1, help="processes (default 1)")
    scan.add_argument("--ray", nargs="?", const="auto", metavar="ADDRESS", help="those of a Ray cluster; auto, local")
    scan.add_argument("--check", action="store_true", help="pass every certificate through the checker at once")
    _add_effort(scan)

    verify = command("verify", "check certificates, without Regina", _verify)
    verify.add_argument("files", nargs="+", type=Path)

    plot = command("plot", "draw an SVG: the distances of slopes, or a slope on the boundary cut open", _plot)
    plot.add_argument("what", choices=("distances", "slope"))
    _add_manifold(plot)
    plot.add_argument("--limit", type=int, default=16, help="slopes in the graph of distances (default 16)")
    plot.add_argument("--weights", help="the slope to draw (default: the first)")
    plot.add_argument("--out", type=Path, required=True, metavar="FILE")

    plant = command("plant", "drill arcs: simple manifolds with a slope that makes them boundary-reducible", _plant)
    plant.add_argument("--limit", type=int, default=10, help="default 10")
    plant.add_argument("--seed", type=int, default=0, help="default 0")
    plant.add_argument("--out", type=Path, metavar="FILE", help="append certificates here")

    return tree


def _add_manifold(command: argparse.ArgumentParser) -> None:
    command.add_argument("manifold", help="isomorphism signature of an ideal triangulation")


def _add_weights(command: argparse.ArgumentParser) -> None:
    command.add_argument("--weights", required=True, help="crossings with the edges of the boundary, such as 0,2,2,4")


def _add_effort(command: argparse.ArgumentParser) -> None:
    command.add_argument("--seed", type=int, default=0, help="of retriangulations (default 0)")
    command.add_argument("--effort", type=int, default=1, help="times as many tries before giving up (default 1)")


def _boundary(options: argparse.Namespace) -> Boundary:
    from statepool.tasks.topology.boundary import Boundary
    from statepool.tasks.topology.manifold import from_isosig

    return Boundary(from_isosig(options.manifold))


def _parse(text: str) -> list[int]:
    parts = [part for part in re.split(r"[,\s]+", text.strip()) if part]
    if not all(re.fullmatch(r"-?\d+", part) for part in parts):
        raise InvalidCurve(f"weights: '{text}' is no list of whole numbers such as 0,2,2,4", param="weights")
    return [int(part) for part in parts]


def _slope(boundary: Boundary, text: str) -> Slope:
    return boundary.slope(_parse(text))


def _census(options: argparse.Namespace) -> int:
    from statepool.tasks.topology.censuses import census

    found = islice(census(options.tets, options.edges, seconds=options.time), options.limit)
    if options.count:
        print(sum(1 for _ in found))
    else:
        for isosig in found:
            print(isosig)
    return 0


def _slopes(options: argparse.Namespace) -> int:
    boundary = _boundary(options)
    for slope in boundary.slopes(options.limit, separating=not options.nonseparating):
        print(",".join(map(str, slope.weights)))
    return 0


def _add(options: argparse.Namespace) -> int:
    from statepool.tasks.topology.handles import attach_2handle
    from statepool.tasks.topology.manifold import Skeleton, core, to_regina

    boundary = _boundary(options)
    gluing = attach_2handle(boundary, _slope(boundary, options.weights))
    small = core.reduce(list(gluing), 0, 0, 100)[0]
    genera = sorted(1 - euler // 2 for euler in Skeleton.of(small).euler)
    print(json.dumps({"isosig": to_regina(small).isoSig(), "tetrahedra": len(small) // 4, "boundary": genera}))
    return 0


def _decide(options: argparse.Namespace) -> int:
    from statepool.tasks.topology.handles import certify, decide, manifold_record, record_of

    boundary = _boundary(options)
    slope = _slope(boundary, options.weights)
    decision = decide(boundary, slope, seed=options.seed, effort=options.effort)
    told: dict[str, Any] = {
        "verdict": decision.verdict,
        "separating": slope.separating,
        "key": list(slope.key),
        "tetrahedra": len(decision.gluing) // 4,
    }
    if options.names:
        from statepool.tasks.topology.names import names

        told |= names(decision.gluing)
    if options.deep:
        from statepool.tasks.topology.watch import compresses

        told["regina_finds_a_disc"] = compresses(decision.gluing)
    if options.double is not None:
        from statepool.tasks.topology.watch import double_is_irreducible

        told["double_is_irreducible"] = double_is_irreducible(decision.gluing, options.double)
    print(json.dumps(told))
    if options.certificate is not None:
        angles = certify(boundary.manifold)
        if angles is None:
            raise InvalidRequest("manifold: has no strict angles on this triangulation, so it is not certified simple")
        with options.certificate.open("a") as file:
            for record in (manifold_record(boundary.manifold, angles), record_of(boundary, slope, decision)):
                file.write(json.dumps(record) + "\n")
    return 0


def _distance(options: argparse.Namespace) -> int:
    boundary = _boundary(options)
    print(boundary.distance(_slope(boundary, options.one), _slope(boundary, options.two)))
    return 0


def _sources(options: argparse.Namespace) -> Iterator[str]:
    """The manifolds that a scan is about; what is wrong with the options is said before the first."""
    from statepool.tasks.topology.censuses import census

    if not options.census and options.manifolds is None:
        raise InvalidRequest("census: name a census or a file of --manifolds", param="census")
    sizes = []
    for text in options.census:
        found = re.fullmatch(r"(\d+):(\d+)", text)
        if found is None:
            raise InvalidRequest(f"census: '{text}' is not TETS:EDGES, such as 3:1", param="census")
        sizes.append((int(found[1]), int(found[2])))
    parts: list[Iterable[str]] = [census(tets, edges) for tets, edges in sizes]
    if options.manifolds is not None:
        parts.append(line for line in options.manifolds.read_text().split() if line)
    return chain.from_iterable(islice(part, options.limit) for part in parts)


def _scan(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    from statepool.tasks.topology.scans import Plan, scan

    sources = _sources(options)
    plan = Plan(options.slopes, not options.nonseparating, options.seed, options.effort, options.check)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("scan", total=None)

        def show(now: Progress) -> None:
            bar.update(task, description=f"{now.manifolds} manifolds, {sum(now.verdicts.values())} slopes")

        done = scan(sources, plan, options.out, workers=options.workers, ray=options.ray, show=show)
    distances = sorted(distance for _, distance in done.pairs)
    told = {
        "manifolds": done.manifolds,
        "not_certified": done.skipped,
        "resumed": done.resumed,
        "slopes": sum(done.verdicts.values()),
        "verdicts": dict(sorted(done.verdicts.items())),
        "pairs": len(distances),
        "largest_distance": distances[-1] if distances else None,
        "breaches": len(done.breaches),
    }
    print(json.dumps(told))
    for line in done.breaches:
        print(line)
    if options.parquet is not None:
        from statepool.tasks.topology.table import write_table

        print(f"{options.parquet}: {write_table(options.out, options.parquet)} rows", file=sys.stderr)
    return int(bool(done.breaches))


def _plot(options: argparse.Namespace) -> int:
    from statepool.tasks.topology.handles import decide
    from statepool.tasks.topology.plots import distances, drawn

    boundary = _boundary(options)
    if options.what == "slope":
        text = options.weights
        slope = next(boundary.slopes(1)) if text is None else _slope(boundary, text)
        picture = drawn(boundary, slope)
    else:
        slopes = list(boundary.slopes(options.limit))
        picture = distances(boundary, slopes, [decide(boundary, slope).verdict for slope in slopes])
    options.out.write_text(picture)
    print(options.out)
    return 0


def _plant(options: argparse.Namespace) -> int:
    from statepool.tasks.topology.boundary import Boundary
    from statepool.tasks.topology.drill import planted
    from statepool.tasks.topology.handles import decide, manifold_record, record_of

    for found in islice(planted(options.seed), options.limit):
        boundary = Boundary(found.manifold)
        decision = decide(boundary, found.slope)
        told = {"isosig": found.manifold.isosig, "weights": list(found.slope.weights), "verdict": decision.verdict}
        print(json.dumps(told), flush=True)
        if options.out is not None:
            with options.out.open("a") as file:
                for record in (
                    manifold_record(found.manifold, found.angles),
                    record_of(boundary, found.slope, decision),
                ):
                    file.write(json.dumps(record) + "\n")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from statepool.tasks.topology import checker

    return checker.main([str(path) for path in options.files])
