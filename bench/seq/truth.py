"""S1, S2, S8, S9: exactness, speed of the evaluation, and what is counted exactly."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

import numpy as np

from bench.machine import LoadWatch
from bench.row import Row
from statepool.tasks import sequences
from statepool.tasks.sequences import Code, census, certify, families, make, orbit_key, parse, verify
from statepool.tasks.sequences.filters import exact_filter, sir_batch
from statepool.tasks.sequences.search import Budget, search, searcher

LONG = "+-+-+-+-+-+-+-+-++-+-++-++--+---++---+++++-----------------"
LONG_SIR = Fraction(12683197267812145791507381280223, 249459254678131045667120217623)
PROVED = {  # n: least energy, least peak, largest ratio, by trying all codes
    5: (2, 1, 13), 7: (3, 1, 9), 9: (12, 2, 7.25), 10: (13, 2, 7.660976), 11: (5, 1, 25), 12: (10, 2, 14.317092),
    13: (6, 1, 37), 14: (19, 2, 26.606370), 15: (15, 2, 22.874282), 16: (24, 2, 21.697290), 17: (32, 2, 20.608911),
    18: (25, 2, 20.331343), 19: (29, 2, 20.852231), 20: (26, 2, 20.900606),
}  # fmt: skip
COUNTS = {1: (24, 96, 192, 864, 704, 1408), 2: (32, 160, 544, 1760, 2432, 5632)}
PAIR_LENGTHS = (27, 29, 31, 33, 37, 41, 49)


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """The rows that are wanted."""
    for name, row in (("S1", _exactness), ("S2", _speed), ("S8", _pairs), ("S9", _sets)):
        if not only or name in only:
            watch = LoadWatch()
            done = row(quick)
            done.command, done.load = f"python -m bench seq --only {name}", watch.stop()
            yield done


def _exactness(quick: bool) -> Row:
    row = Row("S1", "published and proved values that come out the same", "%", "higher", 100.0)
    checks: list[bool] = []
    barker, legendre, long = families.barker(13), families.legendre(59), parse(LONG)
    checks += [make("mmf-sir").score([long]).exact == LONG_SIR, make("mmf-sir").score([barker]).exact == 37]
    checks += [round(sequences.sir(legendre), 5) == 10.98403]
    checks += [round(make("merit").score([legendre]).value, 5) == 6.19395]
    for n, proved in PROVED.items():
        for name, value in zip(("labs", "psl", "mmf-sir"), proved, strict=True):
            found = search(searcher("exhaustive"), make(name), n, Budget(rounds=1 << 20)).best
            checks.append(found is not None and math.isclose(found.number, value, abs_tol=5e-7))
    for kind, counts in COUNTS.items():
        checks += [sum(map(len, census.pairs(n, kind))) == c for n, c in zip((3, 5, 7, 9, 11, 13), counts, strict=True)]
    worst = 0.0
    for n in (59, 128) if quick else (59, 128, 256):
        code = Code(tuple(np.random.default_rng(n).integers(0, 2, n).tolist()))
        exact = exact_filter(code).sir
        worst = max(worst, abs(float(Fraction(float(sir_batch(code.signs[None])[0])) / exact - 1)))
    checks.append(worst <= 1e-9)
    row.value = 100.0 * sum(checks) / len(checks)
    row.own, row.note = (
        f"{sum(checks)} of {len(checks)}",
        f"double precision is off by {worst:.1e} at most up to 256 symbols",
    )
    return row


def inverse(signs: np.ndarray) -> float:
    """The ratio as AlphaSeq evaluates it: R from all shifted copies, and a linear solve."""
    n = len(signs)
    shifted = np.zeros((2 * n - 1, n))
    for shift in range(1 - n, n):
        first, last = max(0, shift), min(n, n + shift)
        if shift:
            shifted[shift + n - 1, first:last] = signs[first - shift : last - shift]
    return float(signs @ np.linalg.solve(shifted.T @ shifted, signs))


def _speed(quick: bool) -> Row:
    row = Row("S2", "ratios of 59 symbols per second and core", "x", "higher", 60.0, peer="matrix and solve, NumPy")
    codes = np.random.default_rng(0).choice(np.array([-1, 1], np.int8), (40_000, 59))
    ours, theirs = [], []
    for _ in range(2 if quick else 5):
        ours.append(_rate(lambda: sir_batch(codes), len(codes)))
        rows = codes[:1500].astype(float)
        theirs.append(_rate(lambda rows=rows: [inverse(code) for code in rows], len(rows)))
    assert np.allclose(sir_batch(codes[:50]), [inverse(code.astype(float)) for code in codes[:50]], rtol=1e-9)
    row.value = float(np.median(np.array(ours) / np.array(theirs)))
    row.own, row.peer_value, row.peer_unit = f"{np.median(ours):,.0f} 1/s", float(np.median(theirs)), "1/s"
    row.note = "processor seconds of one thread"
    return row


def _rate(work: Callable[[], object], count: int) -> float:
    started = time.process_time()
    work()
    return count / (time.process_time() - started)


def _pairs(quick: bool) -> Row:
    what = f"lengths of {', '.join(map(str, PAIR_LENGTHS))} where an optimal odd pair of type 1 is found in 600 s"
    row = Row("S8", what, "of 7", "higher", 7.0)
    objective, found, told = make("zcp"), 0, []
    for n in PAIR_LENGTHS:
        started = time.process_time()
        built, how = next(families.odd_pairs(n, 1), None), "from a Golay pair"
        if built is not None:
            verify(certify(objective, built)[0])
        else:
            for algo in ("skew", "tabu") if n % 4 == 1 else ("tabu",):
                best = cpu_search(algo, objective, n, 2, 20 if quick else 600, 0)
                if not best.number:
                    break
            if best.number:
                told.append(f"{n}: none, least cost {best.number:g}")
                continue
            verify(best)
            how = f"{time.process_time() - started:.2g} s ({algo})"
        found += 1
        told.append(f"{n}: {how}")
    row.value, row.own, row.note = float(found), f"{found}", "; ".join(told) + "; seed 2, processor seconds, one thread"
    return row


def cpu_search(algo: str, objective: object, n: int, seed: int, seconds: float, target: float) -> sequences.Record:
    """The best after so many processor seconds of one thread, or at the target."""
    started, rounds = time.process_time(), 0
    best: sequences.Record | None = None
    made = searcher(algo)
    for batch in made.batches(objective, n, seed, 0):  # type: ignore[arg-type]
        record = certify(objective, [Code(tuple(map(int, row))) for row in batch.phases], seed)[0]  # type: ignore[arg-type]
        higher = objective.better == "higher"  # type: ignore[attr-defined]
        if best is None or (record.number > best.number if higher else record.number < best.number):
            best = record
        rounds += batch.rounds
        if time.process_time() - started >= seconds or (best.number >= target if higher else best.number <= target):
            break
    assert best is not None
    return best


def _sets(quick: bool) -> Row:
    row = Row(
        "S9", "time to list all ideal sets of 2 users, 2 elements, 8 symbols, and sort them by orbit", "s", "lower", 1.0
    )
    started = time.process_time()
    objective, sets = make("moccs"), census.complementary_sets(8)
    keys = {orbit_key(objective, [Code(tuple(int(x < 0) for x in code)) for code in item]) for item in sets}
    row.value = time.process_time() - started
    row.own = f"{len(sets)} sets, {len(keys)} orbits"
    row.note = "AlphaSeq found 1; 12 classes when reversing and alternating do not count as symmetries"
    return row
