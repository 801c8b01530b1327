"""S3 to S7: what the searches find, and how soon."""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.machine import LoadWatch
from bench.row import Row
from bench.seq.truth import cpu_search
from statepool.tasks.sequences import make, verify
from statepool.tasks.sequences.correlation import core

BEST_BEFORE = {24: 27.003, 28: 30.018, 32: 37.212, 36: 29.137, 40: 39.737, 53: 30.89, 67: 32.73, 80: 41.16, 100: 16.6}
# Packebusch and Mertens, arXiv 1512.02475
ENERGIES = dict(zip(range(24, 60), (
    36, 36, 45, 37, 50, 62, 59, 67, 64, 64, 65, 73, 82, 86, 87, 99, 108, 108, 101, 109, 122, 118, 131, 135, 140, 136,
    153, 153, 166, 170, 175, 171, 192, 188, 197, 205,
), strict=True))  # fmt: skip
# the best known in 2016, skew-symmetric; arXiv 2504.00987 improves 99, 107, 109, 113 and 119
LONG = {
    91: 477, 95: 479, 97: 536, 99: 577, 101: 578, 103: 555, 105: 620, 107: 677, 109: 662, 111: 687, 113: 752, 115: 745,
    117: 786, 119: 835,
}  # fmt: skip
DUELS = (41, 45, 49, 51, 55, 59)
PATIENCE = 20.0
"""Processor seconds after which the yardstick is stopped: the ratio is then a lower bound."""
LIMITS = (-0.5, -1.0, -1.5, -2.0, -3.0)


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """The rows that are wanted."""
    for name, rows in (("S3", _ratio), ("S4", _table), ("S5", _front), ("S6", _energy), ("S7", _long)):
        if not only or name in only:
            watch = LoadWatch()
            for row in rows(quick):
                row.command, row.load = f"python -m bench seq --only {name}", watch.stop()
                yield row


def _ratio(quick: bool) -> Iterator[Row]:
    values, times = [], []
    for seed in range(10):
        started = time.process_time()
        best = cpu_search("tabu", make("mmf-sir"), 59, seed, 10 if quick else 60, 50.8427)
        verify(best)
        values.append(best.number)
        times.append(time.process_time() - started)
    about = f"{statistics.median(times):.1f} s median until the search stopped at 50.8427, {max(times):.1f} s at most"
    middle = Row("S3", "ratio at 59 symbols after 60 s, median of 10 seeds", "SIR", "higher", 49.69, peer="AlphaSeq")
    middle.value, middle.own, middle.peer_value, middle.peer_unit = statistics.median(values), about, 33.453, "SIR"
    middle.note = (
        f"all: {' '.join(f'{v:.2f}' for v in sorted(values))}; processor seconds of one thread; exact fractions"
    )
    yield middle
    best_row = Row(
        "S3b", "the same, best of 10 seeds", "SIR", "higher", 50.84, peer="HpGAN (abstract)", peer_value=43.9
    )
    best_row.value, best_row.own, best_row.peer_unit = max(values), f"{max(values):.6f}", "SIR"
    yield best_row


def _table(quick: bool) -> Iterator[Row]:
    row = Row("S4", "lengths where the ratio is at least the best known before", "of 9", "higher", 9.0)
    found, reached = {}, 0
    for n, before in BEST_BEFORE.items():
        best = cpu_search("tabu", make("mmf-sir"), n, 1, 3 if quick else 20, float("inf"))
        verify(best)
        found[n] = best
        reached += best.number >= before - 5e-4
    row.value, row.own = float(reached), f"{reached}"
    row.note = "20 s each: " + ", ".join(
        f"{n}: {best.number:.4f} (before {BEST_BEFORE[n]})" for n, best in found.items()
    )
    yield row


def _front(quick: bool) -> Iterator[Row]:
    front = {}
    for limit in LIMITS:
        best = cpu_search("tabu", make("mmf-sir", {"loss_min": limit}), 59, 1, 4 if quick else 30, float("inf"))
        verify(best)
        front[limit] = best
    row = Row(
        "S5", "ratio at 59 symbols with at most 1 dB of loss", "SIR", "higher", 28.0, peer="best energy (LABS optimum)"
    )
    row.value, row.own = front[-1.0].number, front[-1.0].codes[0].text
    row.peer_value, row.peer_unit = 21.34, "SIR at -0.52 dB"
    row.note = "front: " + ", ".join(f"{limit} dB {best.number:.2f}" for limit, best in front.items())
    yield row


def _energy(quick: bool) -> Iterator[Row]:
    slow = _yardstick()
    ratios, notes = {}, []
    for n in DUELS[:3] if quick else DUELS:
        ours = [_ours(n, seed) for seed in range(3)]
        theirs, bound = [], False
        for seed in range(1 if quick else 2):
            seconds, finished = _theirs(slow, n, seed)
            theirs.append(seconds)
            bound |= not finished
        ratios[n] = statistics.median(theirs) / statistics.median(ours)
        mark = "≥ " if bound else ""
        notes.append(f"{n}: {statistics.median(ours):.3f} s against {mark}{statistics.median(theirs):.1f} s")
    row = Row(
        "S6", "least energy: time to the optimum, worst of six lengths", "x", "higher", 10.0, peer="plain tabu, C++ -O3"
    )
    row.value, row.own, row.note = (
        min(ratios.values()),
        "; ".join(f"{n}: {r:.0f}×" for n, r in ratios.items()),
        "; ".join(notes),
    )
    yield row
    solved, times = 0, {}
    for n in range(24, 36) if quick else ENERGIES:
        times[n] = _ours(n, 1, 150)
        solved += times[n] < 150
    every = Row("S6b", "lengths 24 to 59 whose proved optimum is found in 150 s", "of 36", "higher", 36.0)
    every.value = float(solved)
    slowest = sorted(times, key=lambda n: -times[n])[:4]
    every.own, every.note = f"{solved}", "slowest: " + ", ".join(f"{n} {times[n]:.1f} s" for n in slowest)
    yield every


def _long(quick: bool) -> Iterator[Row]:
    seconds = 4 if quick else 30
    found = {}
    for n in list(LONG)[::5] if quick else LONG:
        best = cpu_search("skew", make("labs"), n, 1, seconds, LONG[n])
        verify(best)
        found[n] = best.number
    row = Row("S7", f"least energy, odd lengths 91 to 119: best known reached in {seconds} s", "%", "higher", 100.0)
    reached = sum(energy <= LONG[n] for n, energy in found.items())
    row.value, row.own = 100 * reached / len(found), f"{reached} of {len(found)}"
    row.note = "; ".join(f"{n}: {energy:.0f} (known {LONG[n]})" for n, energy in found.items())
    row.note += "; processor seconds of one thread, skew-symmetric codes only"
    yield row


def _ours(n: int, seed: int, limit: float = 60) -> float:
    """Processor seconds to the optimum: odd lengths share rounds between the skew half and all codes."""
    started, first, rounds = time.process_time(), 0, 50
    while time.process_time() - started < limit:
        for skew in (True, False) if n % 2 else (False,):
            found = core.search_energy(n, skew, seed, first, rounds, "walk", 8 * n, ENERGIES[n])
            if found[1] <= ENERGIES[n]:
                return time.process_time() - started
        first += rounds
    return limit


def _yardstick() -> Path:
    program = Path(tempfile.mkdtemp()) / "plain_tabu"
    source = Path(__file__).with_name("plain_tabu.cpp")
    subprocess.run(["c++", "-O3", "-march=native", "-o", program, source], check=True)
    return program


def _theirs(program: Path, n: int, seed: int) -> tuple[float, bool]:
    """Processor seconds, and whether it got there."""
    limit = f"ulimit -t {int(PATIENCE)}; exec {program} {n} {ENERGIES[n]} {seed + 1}"
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(["sh", "-c", limit], capture_output=True)
    return max(1e-3, resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before), done.returncode == 0
