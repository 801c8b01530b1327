"""``statepool seq …``: judge codes, search for them, check certificates, draw, export, keep a leaderboard."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from statepool.core.command import adder, run
from statepool.core.errors import InvalidRequest
from statepool.tasks.sequences.codes import Code, parse
from statepool.tasks.sequences.errors import BadCertificate
from statepool.tasks.sequences.families import BY_NAME
from statepool.tasks.sequences.formats import FORMATS, export, read_codes
from statepool.tasks.sequences.objectives import KINDS, Objective, make
from statepool.tasks.sequences.plots import PLOTS, draw, pareto
from statepool.tasks.sequences.records import certify, params_of, read_records, verify

__all__ = ["main"]

_PARAMS = {
    "length": (int, "taps of the mismatched filter (mmf-sir; default: one per symbol)"),
    "loss_min": (float, "least processing gain relative to the matched filter, dB, such as -1 (mmf-sir)"),
    "ridge": (float, "white noise a search adds, to be led to filters that lose little (mmf-sir)"),
    "kind": (int, "1: zero zone at small lags, 2: at large lags (zcp)"),
    "users": (int, "sets (moccs)"),
    "elements": (int, "codes of a set (moccs)"),
    "doppler": (float, "half width of the window in cycles per pulse (wisl)"),
    "bins": (int, "Doppler shifts in the window (wisl)"),
    "delays": (int, "delays on each side that count (wisl)"),
    "oversampling": (int, "instants per symbol (pmepr)"),
}


def main(arguments: list[str], run_program: Callable[..., str] | None = None) -> int:
    """Run a command; returns 0, 1 if a certificate does not hold, 2 for what a user can repair.

    ``run_program`` runs what a model writes: a program and its ``cpu_seconds`` to what it printed. Without it a model
    may only answer with codes.
    """
    options = parser().parse_args(arguments)
    options.run_program = run_program
    return run("statepool seq", options)


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    tree = argparse.ArgumentParser(prog="statepool seq", description="Design of sequences with exact verification.")
    command = adder(tree)
    judge = command("eval", "judge codes", _eval)
    _add_codes(judge)
    judge.add_argument("--objective", required=True, choices=sorted(KINDS))
    judge.add_argument("--certificate", type=Path, metavar="FILE", help="append a certificate here")
    _add_params(judge)

    hunt = command(
        "search", "search for codes; a second run with the same --out goes on where the first stopped", _search
    )
    hunt.add_argument("objective", choices=sorted(KINDS))
    hunt.add_argument("-n", type=int, required=True, help="symbols")
    hunt.add_argument(
        "--algo",
        "--searcher",
        default="tabu",
        help="tabu (default), walk, skew, descent, exhaustive, random, hpgan, alphaseq or llm",
    )
    hunt.add_argument(
        "--time", type=float, metavar="SECONDS", help="stop after so long, earlier runs of --out included"
    )
    hunt.add_argument("--rounds", type=int, help="stop after so many rounds")
    hunt.add_argument("--target", type=float, help="stop at a value this good")
    hunt.add_argument("--seed", type=int, default=0, help="default 0")
    hunt.add_argument("--alphabet", type=int, default=2, help="phases of a symbol (default 2; more: descent)")
    hunt.add_argument("--loss", default="wgan", choices=("wgan", "gan"), help="of hpgan (default wgan)")
    hunt.add_argument("--repair", action="store_true", help="hpgan: follow each decoded code downhill")
    hunt.add_argument("--url", help="llm: an OpenAI-compatible server, such as http://127.0.0.1:8000/v1")
    hunt.add_argument("--model", help="llm: which of the server's models")
    hunt.add_argument("--cpu-seconds", type=int, default=10, help="llm: of each program it writes (default 10)")
    hunt.add_argument("--out", type=Path, metavar="FILE", help="JSONL of certificates")
    hunt.add_argument("--archive", metavar="STORE", help="folder or address of a store that keeps the best")
    _add_params(hunt)

    check = command("verify", "check certificates", _verify)
    check.add_argument("files", nargs="+", type=Path)

    plot = command("plot", "draw an SVG", _plot)
    plot.add_argument("what", choices=PLOTS)
    _add_codes(plot)
    plot.add_argument("--out", type=Path, required=True, metavar="FILE")
    _add_params(plot, "length", "loss_min", "doppler")

    write = command("export", "write codes for another program", _export)
    _add_codes(write)
    write.add_argument("--fmt", required=True, choices=FORMATS)
    write.add_argument("--out", type=Path, required=True, metavar="FILE")

    board = command("leaderboard", "show the best of an archive, or add certificates to it", _leaderboard)
    board.add_argument("archive", help="folder or address of the store")
    board.add_argument("--add", nargs="*", type=Path, default=[], metavar="FILE")
    board.add_argument("--problem", choices=sorted(KINDS), help="one board; needs -n")
    board.add_argument("-n", type=int)
    board.add_argument("--limit", type=int, default=10, help="default 10")
    _add_params(board)
    return tree


def _add_codes(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "codes",
        nargs="*",
        help="files (.jsonl, .sol, .mat, a code per line), or codes as text; write -- before a code that begins with -",
    )
    command.add_argument("--family", metavar="NAME=N", help=f"a code with a formula: {', '.join(sorted(BY_NAME))}")
    command.add_argument("--alphabet", type=int, default=2, help="phases of a symbol (default 2)")
    command.add_argument("-n", type=int, help="symbols, for codes written as hex:…")


def _add_params(command: argparse.ArgumentParser, *names: str) -> None:
    group = command.add_argument_group("parameters of the objective")
    for name in names or _PARAMS:
        kind, text = _PARAMS[name]
        group.add_argument("--" + name.replace("_", "-"), type=kind, help=text, metavar="X")


def _objective(options: argparse.Namespace, name: str) -> Objective:
    params = {key: getattr(options, key) for key in _PARAMS if getattr(options, key, None) is not None}
    found: Objective = make(name, params)
    return found


def _codes(options: argparse.Namespace) -> list[tuple[Code, ...]]:
    """Sets of codes: of each file every one, and one of all that were given as text."""
    if options.family is not None:
        name, _, number = options.family.partition("=")
        if name not in BY_NAME or not number.isdigit():
            raise InvalidRequest(
                f"family: '{options.family}' is not NAME=N with a name of {', '.join(sorted(BY_NAME))}"
            )
        return [BY_NAME[name](int(number))]
    sets, loose = [], []
    for text in options.codes:
        if Path(text).suffix and not set(text) <= set("+-"):
            sets += read_codes(Path(text), alphabet=options.alphabet)
        else:
            loose.append(parse(text, alphabet=options.alphabet, n=options.n))
    sets += [tuple(loose)] if loose else []
    if not sets:
        raise InvalidRequest("codes: name a file, a code or --family", param="codes")
    return sets


def _eval(options: argparse.Namespace) -> int:
    objective = _objective(options, options.objective)
    sets = _codes(options)
    if objective.codes > 1 and {len(codes) for codes in sets} == {1} and len(sets) == objective.codes:
        sets = [tuple(codes[0] for codes in sets)]  # a file with one code per line
    for codes in sets:
        record, score = certify(objective, codes)
        facts = {key: value for key, value in score.facts.items() if key != "taps"}
        print(json.dumps({"value": record.value, "float": score.value, **facts, "orbit_key": record.orbit_key}))
        if options.certificate is not None:
            with options.certificate.open("a") as file:
                file.write(record.json() + "\n")
    return 0


def _search(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from statepool.tasks.sequences.search import Budget, Found, Journal, search, searcher

    objective = _objective(options, options.objective)
    given: dict[str, Any] = {"alphabet": options.alphabet}
    if options.algo == "hpgan":
        given |= {"loss": options.loss, "repair": options.repair}
    if options.algo == "llm":
        if options.cpu_seconds < 1:
            raise InvalidRequest(f"cpu_seconds: must be at least 1, not {options.cpu_seconds}", param="cpu_seconds")
        given |= {"url": options.url, "model": options.model, "cpu_seconds": options.cpu_seconds}
    runs = options.run_program
    program = None if runs is None else partial(runs, cpu_seconds=options.cpu_seconds)
    using = searcher(options.algo, given | {"run": program})
    budget = Budget(options.time, options.rounds, options.target)
    journal = None
    if options.out is not None:
        params = {key: getattr(options, key) for key in _PARAMS if getattr(options, key) is not None}
        settings = {"problem": options.objective, "params": params, "n": options.n, "algo": options.algo}
        journal = Journal(options.out, settings | {"seed": options.seed, **given})
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("search", total=options.time or options.rounds)

        def show(now: Found) -> None:
            best = "–" if now.best is None else f"{now.best.number:.6g}"
            text = f"{options.objective} n={options.n}: best {best}, {now.rounds} rounds, {now.evaluations:.3g} codes"
            bar.update(task, completed=now.seconds if options.time else now.rounds, description=text)

        found = search(
            using,
            objective,
            options.n,
            budget,
            seed=options.seed,
            journal=journal,
            show=show,
        )
    if found.best is None:
        print("nothing found: the budget ended before the first round", file=sys.stderr)
        return 1
    print(found.best.json())
    if options.archive is not None:
        from statepool.tasks.sequences.archive import Archive

        with Archive(options.archive) as archive:
            new = archive.add(found.best)
        print(f"{options.archive}: {'kept' if new else 'was there already'}", file=sys.stderr)
    return 0


def _verify(options: argparse.Namespace) -> int:
    refused = 0
    for path in options.files:
        try:
            for number, record in enumerate(read_records(path), 1):
                try:
                    verify(record)
                    print(f"{path}: {number}: {record.problem} n={len(record.codes[0])} {record.value} holds")
                except BadCertificate as error:
                    refused += 1
                    print(f"{path}: {number}: refused: {error.message}")
        except BadCertificate as error:
            refused += 1
            print(f"refused: {error.message}")
    return int(refused > 0)


def _plot(options: argparse.Namespace) -> int:
    if options.what == "pareto":
        records = [record for path in options.codes for record in read_records(Path(path))]
        points = [tuple(map(float, _point(record.codes[0], record.params))) for record in records if record.filter]
        text = pareto([(p[0], p[1]) for p in points])
    else:
        doppler = 2.0 if options.doppler is None else options.doppler
        text = draw(
            options.what, _codes(options)[0][0], length=options.length, loss_min=options.loss_min, doppler=doppler
        )
    options.out.write_text(text)
    print(options.out)
    return 0


def _point(code: Code, params: dict[str, Any]) -> tuple[float, float]:
    facts = make("mmf-sir", params).score([code]).facts
    return facts["loss_db"], facts["sir_db"]


def _export(options: argparse.Namespace) -> int:
    codes = [code for group in _codes(options) for code in group]
    for path in export(codes, options.fmt, options.out):
        print(path)
    return 0


def _leaderboard(options: argparse.Namespace) -> int:
    from statepool.tasks.sequences.archive import Archive

    if (options.problem is None) != (options.n is None):
        raise InvalidRequest("problem: a board is named by --problem and -n together", param="problem")
    with Archive(options.archive) as archive:
        for path in options.add:
            added = [archive.add(record) for record in read_records(path)]
            print(f"{path}: {sum(added)} new, {len(added) - sum(added)} known", file=sys.stderr)
        if options.problem is None:
            for board, record in archive.boards():
                print(f"{board}  {record.number:.6g}  {record.codes[0].text}")
        else:
            wanted = params_of(_objective(options, options.problem))
            for place, record in enumerate(archive.best(options.problem, options.n, wanted, options.limit), 1):
                print(f"{place:3}  {record.number:<14.9g} {record.value}  {' '.join(c.text for c in record.codes)}")
    return 0
