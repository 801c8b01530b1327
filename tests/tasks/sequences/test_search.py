"""Searches find what is proved to be the best; journals survive a kill; the same seed finds the same."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from statepool.core.errors import InvalidRequest
from statepool.tasks.sequences import BadCertificate, Code, census, make, orbit_key, read_records, verify
from statepool.tasks.sequences.search import SEARCHERS, Budget, Journal, search, searcher

from .published import ENERGIES, EXHAUSTIVE, GOLAY_PAIRS, ODD_PAIRS, PEAKS, cross


@pytest.mark.parametrize("n", EXHAUSTIVE)
def test_all_codes_give_the_proved_values(n: int) -> None:
    def best(name: str) -> float:
        found = search(searcher("exhaustive"), make(name), n, Budget(rounds=1 << 20))
        assert found.finished and found.evaluations == 1 << (n - 1)
        return found.best.number

    energy, ratio = EXHAUSTIVE[n]
    assert best("labs") == energy
    assert best("psl") == PEAKS[n]
    assert f"{best('mmf-sir'):.6f}" == f"{float(ratio):.6f}"


@pytest.mark.parametrize("n", range(24, 35))
def test_the_walk_finds_proved_energies(n: int) -> None:
    found = search(searcher("walk"), make("labs"), n, Budget(seconds=60, target=ENERGIES[n]))
    assert found.best.number == ENERGIES[n]


@pytest.mark.slow
@pytest.mark.parametrize("n", range(35, 41))
def test_the_walk_finds_larger_proved_energies(n: int) -> None:
    assert search(searcher("walk"), make("labs"), n, Budget(seconds=120, target=ENERGIES[n])).best.number == ENERGIES[n]


def test_the_skew_walk_stays_skew_symmetric_and_counts_right() -> None:
    batches = searcher("skew").batches(make("labs"), 27, 0, 0)
    batch = min(islice(batches, 3), key=lambda batch: batch.cost)
    s = (1 - 2 * batch.phases[0]).tolist()
    assert all(s[13 - j] == (-1) ** j * s[13 + j] for j in range(14))
    assert sum(cross(s, s, k) ** 2 for k in range(1, 27)) == batch.cost == 37


@pytest.mark.parametrize("name", ["labs", "mmf-sir", "zcp"])
@pytest.mark.parametrize("method", ["tabu", "walk"])
def test_costs_that_a_native_search_reports_are_those_of_its_codes(name: str, method: str) -> None:
    objective = make(name)
    for n in (16, 33, 60):
        batch = next(searcher(method).batches(objective, n, n, 5))
        true = objective.costs((1 - 2 * batch.phases).astype(np.int8)[None])[0]
        assert batch.cost == pytest.approx(true, rel=1e-4)
        assert batch.evaluations > n and batch.rounds >= 1


@pytest.mark.parametrize("name", ["tabu", "walk", "random", "descent", "exhaustive"])
def test_same_seed_same_codes(name: str) -> None:
    def rounds(seed: int, first: int) -> list[bytes]:
        return [b.phases.tobytes() for b in islice(searcher(name).batches(make("psl"), 15, seed, first), 2)]

    both = rounds(1, 0)
    assert rounds(1, 0) == both
    if name != "exhaustive":  # one round holds all of it
        assert rounds(1, 1)[0] == both[1]
        assert rounds(2, 0) != both


@pytest.mark.parametrize("name", ["psl", "wisl", "pmepr", "moccs"])
def test_the_search_in_python_improves_every_objective(name: str) -> None:
    objective = make(name)
    found = search(searcher("tabu"), objective, 8, Budget(rounds=2))
    drawn = search(searcher("random"), objective, 8, Budget(rounds=1))
    assert found.best.number <= drawn.best.number + 1e-9
    verify(found.best)


def test_descent_over_phases_beats_two_phases() -> None:
    two, eight = (
        search(searcher("descent", {"alphabet": a}), make("labs"), 16, Budget(rounds=20)).best.number for a in (2, 8)
    )
    assert eight < two
    assert two >= 24  # proved


def test_a_limit_of_loss_leads_to_other_codes() -> None:
    objective = make("mmf-sir", {"loss_min": -1.0})
    found = search(searcher("tabu"), objective, 40, Budget(rounds=24))
    verify(found.best)
    free = search(searcher("tabu"), make("mmf-sir"), 40, Budget(rounds=24))
    assert found.best.number > objective.score(free.best.codes).value
    assert objective.score(found.best.codes).facts["loss_db"] >= -1.000001


@pytest.mark.parametrize("kind", [1, 2])
def test_counts_of_odd_pairs(kind: int) -> None:
    assert {n: sum(map(len, census.pairs(n, kind))) for n in ODD_PAIRS[kind]} == ODD_PAIRS[kind]


def test_every_listed_pair_is_optimal_and_listed_once() -> None:
    found = np.concatenate(list(census.pairs(9, 1)))
    assert len(np.unique(found, axis=0)) == len(found)
    for a, b in found[::29].tolist():
        sums = [cross(a, a, k) + cross(b, b, k) for k in range(1, 9)]
        assert sums[:4] == [0] * 4 and all(abs(s) == 2 for s in sums[4:])


def test_complementary_sets_of_eight_and_their_orbits() -> None:
    assert {n: sum(map(len, census.pairs(n))) for n in GOLAY_PAIRS} == GOLAY_PAIRS
    sets = census.complementary_sets(8)
    objective = make("moccs")
    assert len(sets) == 384 and not objective.costs(sets).any()
    codes = [[Code(tuple(int(x < 0) for x in row)) for row in item] for item in sets.tolist()]
    assert len({orbit_key(objective, item) for item in codes}) == 10
    # without reversal and alternation there are 12 classes of 32
    classes: dict[tuple, int] = {}
    for item in sets.tolist():
        forms = []
        for users in ((0, 1), (1, 0)):
            for elements in ((0, 1), (1, 0)):
                for bits in range(16):
                    u, m = (
                        (1 - 2 * (bits & 1), 1 - 2 * (bits >> 1 & 1)),
                        (1 - 2 * (bits >> 2 & 1), 1 - 2 * (bits >> 3 & 1)),
                    )
                    forms.append(
                        tuple(
                            tuple(x * u[a] * m[b] for x in item[2 * users[a] + elements[b]])
                            for a in (0, 1)
                            for b in (0, 1)
                        )
                    )
        classes[min(forms)] = classes.get(min(forms), 0) + 1
    assert len(classes) == 12 and set(classes.values()) == {32}


@pytest.mark.parametrize("n", [17, 21, 25])
def test_the_search_finds_optimal_odd_pairs(n: int) -> None:
    for kind in (1, 2):
        found = search(searcher("tabu"), make("zcp", {"kind": kind}), n, Budget(seconds=60, target=0))
        assert found.best.value == "0"
        verify(found.best)


@pytest.mark.parametrize("n", [9, 13])
def test_pairs_of_skew_symmetric_codes_are_all_that_repeat_their_first_half(n: int) -> None:
    m = n // 2
    every = np.concatenate(list(census.pairs(n, 1)))
    same, opposite = (every[:, 0] == sign * every[:, 1] for sign in (1, -1))
    form = same[:, : m + 1].all(1) & opposite[:, m + 1 : -1].all(1) & same[:, -1]
    expected = {pair.tobytes() for pair in every[form]}
    batches = list(searcher("skew").batches(make("zcp"), n, 0, 0))
    found = [(1 - 2 * batch.phases).astype(np.int8) for batch in batches if batch.cost == 0]
    forms = [x * np.array([*[s] * (m + 1), *[t] * (m - 1), s]) for x in found for s in (1, -1) for t in (1, -1)]
    assert len(forms) == len(expected) > 0
    assert {pair.astype(np.int8).tobytes() for pair in forms} == expected
    assert batches[-1].last and sum(batch.evaluations for batch in batches) == 1 << m // 2


@pytest.mark.parametrize(("n", "orbits"), [(29, 4), (37, 0), (49, 8), (57, 4)])
def test_optimal_pairs_of_49_and_57_symbols(n: int, orbits: int) -> None:
    keys = set()
    for batch in searcher("skew").batches(make("zcp"), n, 0, 0):
        a, b = (1 - 2 * batch.phases).tolist()
        sums = [cross(a, a, k) + cross(b, b, k) for k in range(1, n)]
        optimal = not any(sums[: n // 2]) and all(abs(s) == 2 for s in sums[n // 2 :])
        assert optimal == (batch.cost == 0)
        if optimal:
            keys.add(orbit_key(make("zcp"), [Code(tuple(map(int, row))) for row in batch.phases]))
    assert len(keys) == orbits


def test_a_search_of_skew_pairs_goes_on_at_any_round(tmp_path: Path) -> None:
    every = [b.phases.tobytes() for b in searcher("skew").batches(make("zcp"), 57, 0, 0) if b.first >= 2]
    assert every == [b.phases.tobytes() for b in searcher("skew").batches(make("zcp"), 57, 9, 2)]
    for rounds in (1, 3, 9):
        found = search(
            searcher("skew"), make("zcp"), 57, Budget(rounds=rounds), journal=Journal(tmp_path / "found.jsonl", {})
        )
    records = list(read_records(tmp_path / "found.jsonl"))
    assert found.finished and len({r.orbit_key for r in records if r.value == "0"}) == 4
    for record in records:
        verify(record)


def test_a_journal_goes_on_where_it_stopped(tmp_path: Path) -> None:
    def run(rounds: int, out: Path, seed: int = 3) -> object:
        return search(
            searcher("random"),
            make("mmf-sir"),
            20,
            Budget(rounds=rounds),
            seed=seed,
            journal=Journal(out, {"seed": seed}),
        )

    whole = run(12, tmp_path / "whole.jsonl")
    run(5, tmp_path / "parts.jsonl")
    resumed = run(12, tmp_path / "parts.jsonl")
    assert resumed.rounds == whole.rounds == 12 and resumed.evaluations == whole.evaluations
    assert (tmp_path / "parts.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    with pytest.raises(InvalidRequest, match="belongs to another search"):
        run(12, tmp_path / "parts.jsonl", seed=4)
    (tmp_path / "parts.jsonl").write_bytes((tmp_path / "whole.jsonl").read_bytes()[:-30])  # a torn last line
    assert run(12, tmp_path / "parts.jsonl").records == whole.records - 1
    (tmp_path / "bare.jsonl").write_text("{}\n")
    with pytest.raises(InvalidRequest, match="and has no"):
        run(1, tmp_path / "bare.jsonl")
    (tmp_path / "parts.jsonl.state").write_text("{")
    with pytest.raises(BadCertificate, match="is no progress of a search"):
        run(12, tmp_path / "parts.jsonl")


def test_a_search_killed_again_and_again_loses_and_repeats_nothing(tmp_path: Path) -> None:
    out, noise = tmp_path / "found.jsonl", random.Random(7)
    command = [sys.executable, "-m", "statepool.cli", "seq", "search", "mmf-sir", "-n", "18", "--algo", "random"]
    command += ["--rounds", "60", "--seed", "5", "--out", str(out)]
    rounds = []
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        state = Path(f"{out}.state")
        while process.poll() is None and time.monotonic() < deadline:
            done = json.loads(state.read_text())["state"]["rounds"] if state.exists() else 0
            if done > (rounds[-1] if rounds else 0):
                break
            time.sleep(0.002)
        time.sleep(noise.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        rounds.append(json.loads(state.read_text())["state"]["rounds"])
    assert rounds == sorted(rounds)
    subprocess.run(command, check=True, capture_output=True, env=dict(os.environ))
    found = list(read_records(out))
    keys = [record.orbit_key for record in found]
    assert len(keys) == len(set(keys))
    whole = search(
        searcher("random"), make("mmf-sir"), 18, Budget(rounds=60), seed=5, journal=Journal(tmp_path / "w", {})
    )
    assert [r.value for r in found] == [r.value for r in read_records(tmp_path / "w")]
    assert found[-1].value == whole.best.value


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: searcher("magic"), "is none of"),
        (lambda: searcher("tabu", {"alphabet": 4}), "makes binary codes"),
        (lambda: Budget(), "needs a limit"),
        (lambda: searcher("llm"), "needs a served model"),
        (lambda: searcher("llm", {"url": "localhost"}), "must begin with http"),
        (lambda: next(searcher("skew").batches(make("labs"), 20, 0, 0)), "an odd n"),
        (lambda: next(searcher("skew").batches(make("psl"), 21, 0, 0)), "objective of the energy"),
        (lambda: next(searcher("skew").batches(make("zcp"), 31, 0, 0)), "9, 13, 17"),
        (lambda: next(searcher("skew").batches(make("zcp", {"kind": 2}), 29, 0, 0)), "of type 1"),
        (lambda: next(searcher("tabu").batches(make("labs"), 1, 0, 0)), "at least 2"),
        (lambda: next(searcher("tabu").batches(make("labs"), 400, 0, 0)), "at most 181"),
        (lambda: next(searcher("exhaustive").batches(make("labs"), 60, 0, 0)), "too many"),
        (lambda: next(searcher("descent", {"alphabet": 4}).batches(make("wisl"), 9, 0, 0)), "descent over phases"),
        (lambda: list(census.pairs(31)), "2 to 20"),
    ],
)
def test_searches_that_cannot_be_are_named(call, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        call()


def test_every_search_has_a_name() -> None:
    assert set(SEARCHERS) == {"tabu", "walk", "skew", "descent", "exhaustive", "random", "hpgan", "alphaseq", "llm"}
