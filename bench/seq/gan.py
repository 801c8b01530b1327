"""S10: what HpGAN's samples are worth, beside tabu search in the same processor time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from bench.machine import LoadWatch
from bench.row import Row
from bench.seq.truth import cpu_search
from statepool.tasks.sequences import Code, census, certify, make, orbit_key, verify


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """Both rows, if wanted."""
    if only and "S10" not in only:
        return
    watch = LoadWatch()
    for row in (*_sets(quick), _ratio(quick)):
        row.command, row.load = "python -m bench seq --only S10", watch.stop()
        yield row


def _codes(signs: np.ndarray) -> list[Code]:
    return [Code(tuple(int(x < 0) for x in code)) for code in signs]


def _learn(known: np.ndarray, objective: object, steps: int, count: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Decoded samples of a WGAN trained on int8 [count, codes, n], the same after repair, and what repair spent."""
    from statepool.tasks.sequences.search.hpgan import Network, decode, descend, encode

    m = known.shape[1] * known.shape[2]
    network = Network(m, "wgan", 1)
    network.train(encode(known.reshape(-1, m)), steps)
    found = decode(network.sample(count), m, np.random.default_rng(1))
    repaired, spent = descend(objective, found, known.shape[2])  # type: ignore[arg-type]
    return found.reshape(-1, *known.shape[1:]), repaired.reshape(-1, *known.shape[1:]), spent


def _sets(quick: bool) -> Iterator[Row]:
    """Train on half of the orbits, count what is valid and what is new, orbits apart."""
    count = 500 if quick else 4000
    cases = (
        ("S10", "ideal sets of 2 users, 2 elements, 8 symbols", make("moccs"), census.complementary_sets(8)),
        ("S10b", "optimal odd pairs of type 1, 13 symbols", make("zcp"), np.concatenate(list(census.pairs(13, 1)))),
    )
    for name, what, objective, everything in cases:
        keys = [orbit_key(objective, _codes(item)) for item in everything]
        orbits = sorted(set(keys))
        training = set(orbits[::2])
        known = everything[[key in training for key in keys]]
        started = time.process_time()
        found, repaired, spent = _learn(known, objective, 200 if quick else 1500, count)
        seconds = time.process_time() - started
        rows = {}
        for label, codes in (("decoded", found), ("repaired", repaired)):
            valid = codes[objective.costs(codes) == 0]
            seen = {orbit_key(objective, _codes(item)) for item in np.unique(valid, axis=0)}
            for key in list(seen - training)[:1]:
                item = next(v for v in valid if orbit_key(objective, _codes(v)) == key)
                verify(certify(objective, _codes(item))[0])
            rows[label] = (len(valid) / len(codes), len(seen & training), len(seen - training))
        tabu = _tabu_orbits(objective, everything.shape[2], seconds, training)
        row = Row(name, f"HpGAN, {what}: valid among decoded samples", "%", "higher", 25.0)
        row.value, row.own = 100 * rows["decoded"][0], f"{count} samples"
        row.note = (
            f"trained on {len(training)} of {len(orbits)} orbits; "
            + "; ".join(f"{k}: {v:.1%} valid, {o} orbits seen before, {new} new" for k, (v, o, new) in rows.items())
            + f"; repair spent {spent:,} evaluations; tabu in the same {seconds:.0f} s: {tabu} new orbits"
        )
        yield row


def _tabu_orbits(objective: object, n: int, seconds: float, training: set[str]) -> int:
    """Orbits outside the training set that restarts of tabu search reach."""
    from statepool.tasks.sequences.search.native import LocalSearch

    started, seen, number = time.process_time(), set(), 0
    local = LocalSearch("tabu", "tabu")
    while time.process_time() - started < seconds:
        batch = local._plain(objective, n, 1, number)  # type: ignore[arg-type]
        number += 1
        if batch.cost == 0:
            seen.add(orbit_key(objective, _codes(1 - 2 * batch.phases)))
    return len(seen - training)


def _ratio(quick: bool) -> Row:
    from statepool.tasks.sequences.search.hpgan import HpGan

    seconds = 10 if quick else 30
    values = {}
    for repair in (False, True):
        started = time.process_time()
        best = 0.0
        for batch in HpGan(repair=repair).batches(make("mmf-sir"), 59, 1, 0):
            best = max(best, certify(make("mmf-sir"), [Code(tuple(map(int, row))) for row in batch.phases])[0].number)
            if time.process_time() - started > seconds:
                break
        values[repair] = best
    tabu = cpu_search("tabu", make("mmf-sir"), 59, 1, seconds, float("inf")).number
    row = Row(
        "S10c", "HpGAN with repair, ratio at 59 symbols in 30 s, over tabu search", "x", "higher", 1.0, peer="tabu"
    )
    row.value, row.peer_value, row.peer_unit = values[True] / tabu, tabu, "SIR"
    row.own, row.note = f"{values[True]:.2f} SIR", f"without repair {values[False]:.2f}; processor seconds, one thread"
    return row
