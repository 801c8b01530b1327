"""S10: what HpGAN's samples are worth, and AlphaSeq's tree search, beside tabu search in the same processor time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from bench.machine import LoadWatch
from bench.row import Row
from bench.seq.truth import cpu_search
from statepool.tasks.sequences import Code, census, certify, make, orbit_key, verify
from statepool.tasks.sequences.objectives import Objective
from statepool.tasks.sequences.search import Searcher
from statepool.tasks.sequences.symmetry import representatives


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """The rows, if wanted."""
    if only and "S10" not in only:
        return
    watch = LoadWatch()
    for row in (*_sets(quick), *_ratio(quick)):
        row.command, row.load = "python -m bench seq --only S10", watch.stop()
        yield row


def _codes(signs: np.ndarray) -> list[Code]:
    return [Code(tuple(int(x < 0) for x in code)) for code in signs]


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
        stages, spent = _learn(known, objective, 200 if quick else 300, count)
        seconds = time.process_time() - started
        told, new = [], set()
        for label, codes in stages.items():
            valid = codes[objective.costs(codes) == 0]
            found = {orbit_key(objective, _codes(item)): item for item in np.unique(valid, axis=0)}
            new = set(found) - training
            for key in new:
                verify(certify(objective, _codes(found[key]))[0])
            told.append(f"{label}: {len(valid) / count:.1%} valid, {len(set(found) & training)} orbits seen before, ")
            told[-1] += f"{len(new)} new"
            if label == "decoded":
                row = Row(name, f"HpGAN, {what}: valid among decoded samples", "%", "higher", 25.0)
                row.value, row.own = 100 * len(valid) / count, f"{count} samples"
        rivals = _tabu_orbits(objective, everything.shape[2], seconds, training)
        row.note = f"trained on {len(training)} of {len(orbits)} orbits; " + "; ".join(told)
        yield row
        novel = Row(f"{name}n", f"HpGAN with repair, {what}: new orbits", "orbits", "higher", 1.0, peer="tabu search")
        novel.value, novel.peer_value, novel.peer_unit = float(len(new)), float(rivals), "orbits"
        novel.own = f"{len(new)} of {len(orbits) - len(training)}, each with a certificate"
        novel.note = f"repair spent {spent:,} evaluations; tabu search had the same {seconds:.0f} s of processor time"
        yield novel


def _learn(known: np.ndarray, objective: Objective, steps: int, count: int) -> tuple[dict[str, np.ndarray], int]:
    """Samples of a WGAN that saw int8 [all, codes, n]: decoded, repaired by one flip, by two; evaluations spent."""
    from statepool.tasks.sequences.search.hpgan import Network, decode, descend, encode

    shape, m = known.shape[1:], known.shape[1] * known.shape[2]
    network = Network(m, "wgan", 1)
    network.train(encode(np.unique(representatives(objective, known), axis=0).reshape(-1, m)), steps)
    found = decode(network.sample(count), m, np.random.default_rng(1))
    once, first = descend(objective, found, shape[1], 1)
    twice, second = descend(objective, once, shape[1], 2)
    stages = {"decoded": found, "repaired by single flips": once, "by two flips": twice}
    return {label: codes.reshape(-1, *shape) for label, codes in stages.items()}, first + second


def _tabu_orbits(objective: Objective, n: int, seconds: float, training: set[str]) -> int:
    """Orbits outside the training set that restarts of tabu search reach."""
    from statepool.tasks.sequences.search.native import LocalSearch

    started, seen, number = time.process_time(), set(), 0
    local = LocalSearch("tabu", "tabu")
    while time.process_time() - started < seconds:
        batch = local._plain(objective, n, 1, number)
        number += 1
        if batch.cost == 0:
            seen.add(orbit_key(objective, _codes(1 - 2 * batch.phases)))
    return len(seen - training)


def _ratio(quick: bool) -> Iterator[Row]:
    from statepool.tasks.sequences.search.alphaseq import AlphaSeq
    from statepool.tasks.sequences.search.hpgan import HpGan

    seconds, objective = 10 if quick else 30, make("mmf-sir")
    tabu = cpu_search("tabu", objective, 59, 1, seconds, float("inf")).number
    plain, repaired, tree = (
        _best(made, seconds) for made in (HpGan(repair=False), HpGan(repair=True), AlphaSeq())
    )  # fmt: skip
    what = f"ratio at 59 symbols in {seconds} s, over tabu search"
    row = Row("S10c", f"HpGAN with repair, {what}", "x", "higher", 1.0, peer="tabu")
    row.value, row.peer_value, row.peer_unit = repaired / tabu, tabu, "SIR"
    row.own, row.note = f"{repaired:.2f} SIR", f"without repair {plain:.2f}; processor seconds, one thread"
    yield row
    row = Row("S10d", f"AlphaSeq's tree search, {what}", "x", "higher", 1.0, peer="tabu")
    row.value, row.peer_value, row.peer_unit = tree / tabu, tabu, "SIR"
    row.own, row.note = f"{tree:.2f} SIR", "published: 33.45 after 4e7 states; processor seconds, one thread"
    yield row


def _best(made: Searcher, seconds: float) -> float:
    """The best ratio after so many processor seconds."""
    started, best = time.process_time(), 0.0
    for batch in made.batches(make("mmf-sir"), 59, 1, 0):
        best = max(best, certify(make("mmf-sir"), [Code(tuple(map(int, row))) for row in batch.phases])[0].number)
        if time.process_time() - started > seconds:
            break
    return best
