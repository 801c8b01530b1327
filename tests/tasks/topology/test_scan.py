"""Certificates and their checker, scans and kills, positives by construction, the watch, and the tasks."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from statepool.core.errors import InvalidRequest
from statepool.tasks.topology import drill, spine, watch
from statepool.tasks.topology.boundary import Boundary
from statepool.tasks.topology.checker import Checker, Group, reduced, shorter
from statepool.tasks.topology.errors import OutOfTime
from statepool.tasks.topology.handles import attach_2handle, certify, decide, manifold_record, record_of
from statepool.tasks.topology.manifold import Skeleton, from_isosig, to_regina
from statepool.tasks.topology.scans import Plan, Progress, block, read_summaries, scan
from statepool.tasks.topology.table import write_table
from statepool.tasks.topology.task import FlipTask, PairTask, SlopeTask
from statepool.tasks.topology.words import judge

POSITIVE, WEAK = "dLQbcccdefw", "dLQbcbcmejw"
"""Have, among the slopes that cross the model least, a boundary-reducing one; two that leave a torus or an annulus."""


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    return json.loads(json.dumps(block(POSITIVE, Plan(slopes=30)) + block(WEAK, Plan(slopes=5))))


def test_certificates_hold(records: list[dict[str, Any]]) -> None:
    checker = Checker()
    assert [reason for record in records if (reason := checker.check(record))] == []
    kinds = Counter((r.get("verdict"), "angles" in r) for r in records if r["kind"] == "slope")
    assert kinds == {("simple", True): 32, ("boundary-reducible", False): 1, ("irreducible", True): 2}


def altered(record: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """One wrong change after the other."""
    if record["kind"] == "manifold":
        yield "angles", record | {"angles": record["angles"] | {"denominator": record["angles"]["denominator"] + 1}}
        numerators = record["angles"]["numerators"]
        yield "angles", record | {"angles": record["angles"] | {"numerators": [numerators[0] + 1, *numerators[1:]]}}
        yield "angles", record | {"angles": record["angles"] | {"numerators": [0, *numerators[1:]]}}
        yield "gluing", record | {"gluing": [record["gluing"][1], *record["gluing"][1:]]}
        yield "genus", record | {"genus": 4}
        yield "format", record | {"format": "other"}
        return
    curve = record["curve"]
    yield "curve", record | {"curve": [curve[0] + 1, *curve[1:]]}
    yield "curve", record | {"curve": [2 * w for w in curve]}
    yield "curve", record | {"curve": curve[:-1]}
    yield "separating", record | {"separating": not record["separating"]}
    yield "verdict", record | {"verdict": "splendid"}
    yield "manifold", record | {"manifold": "0" * 16}
    yield "malformed", {key: value for key, value in record.items() if key != "curve"}
    if record["moves"]:
        kind, tet, place, *rest = record["moves"]
        yield "", record | {"moves": [kind, tet + 900, place, *rest]}
        yield "", record | {"moves": rest}
    if "angles" in record:
        yield "angles", record | {"angles": record["angles"] | {"numerators": record["angles"]["numerators"][1:]}}
        if record["verdict"] == "irreducible":
            yield "angles", record | {"verdict": "simple"}
        yield "verdict", record | {"verdict": "boundary-reducible"}
    if "group" in record:
        yield "", record | {"group": record["group"][:-1]}
        yield "", record | {"verdict": "irreducible"}
        yield "", record | {"verdict": "simple"}
        yield "group", record | {"group": [["shorten", 1], *record["group"]]}


def test_a_changed_certificate_is_refused(records: list[dict[str, Any]]) -> None:
    manifolds = [r for r in records if r["kind"] == "manifold"]
    slopes = [r for r in records if r["kind"] == "slope"]
    picked = [manifolds[0], *slopes[:2], *(r for r in slopes if r["verdict"] != "simple")]
    for record in picked:
        checker = Checker()
        assert [checker.check(manifold) for manifold in manifolds] == [None, None]
        for field, wrong in altered(record):
            reason = checker.check(wrong)
            assert reason is not None and field in reason, (field, reason)
    checker = Checker()
    for record in records[:-1]:
        checker.check(record)
    assert "counts" in str(checker.check(records[-1] | {"verdicts": {"simple": 1}}))


@pytest.mark.parametrize("record", [{}, {"format": "statepool-topology/1", "kind": "x"}, {"kind": "slope"}])
def test_records_that_are_none(record: dict[str, Any]) -> None:
    assert Checker().check(record) is not None


def test_groups_of_known_manifolds() -> None:
    """Knot groups do not split; the exterior of an unlink is free; a trefoil's is <a, b | a² = b³>."""
    import regina

    from statepool.tasks.topology.manifold import from_regina

    for link, splits, betti in ((regina.Link(2), "Z", 2), (regina.Link(1), "Z", 1)):
        made = link.complement()
        made.simplify()
        assert judge(from_regina(made))[::2] == (splits, betti)
    for code in ("+--+++---+++--", None):
        made = regina.ExampleLink.figureEight().complement() if code else regina.ExampleLink.trefoil().complement()
        made.simplify()
        found = judge(from_regina(made))
        assert found is not None and found[::2] == ("indecomposable", 1)


def test_whitehead_knows_primitive_words() -> None:
    """A word is a free factor's if it can be shortened to one letter: abb is one, aabb and [a, b] are not."""

    def least(word: tuple[int, ...]) -> int:
        while (found := shorter([word], [1, 2])) is not None:
            letter, kinds = found
            group = Group.__new__(Group)
            group.generators, group.relators = {1, 2}, [list(word)]
            group.turn(letter, kinds)
            word = tuple(group.relators[0])
        return len(word)

    assert least((1, 2, 2)) == 1 and least((1, 1, 2, 2)) == 4 and least((1, 2, -1, -2)) == 4
    assert least((1, 2, 1, 2, 1)) == 1 and reduced((1, 2, -2, 3, -1)) == (3,)


KILL = """
import sys
from pathlib import Path
from statepool.tasks.topology.censuses import census
from statepool.tasks.topology.scans import Plan, scan
scan(census(3), Plan(slopes=8), Path(sys.argv[1]))
"""


def test_a_killed_scan_goes_on_without_loss_or_repetition(tmp_path: Path) -> None:
    from statepool.tasks.topology.censuses import census

    whole, torn = tmp_path / "whole.jsonl", tmp_path / "torn.jsonl"
    wanted = list(islice(census(3), 20))
    scan(wanted, Plan(slopes=8), whole)
    process = subprocess.Popen([sys.executable, "-c", KILL, str(torn)])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (torn.exists() and torn.stat().st_size > 20_000):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    with torn.open("ab") as file:
        file.write(b'{"format":"statepool-topology/1","kind":"manifold","id":"half')
    done = scan(wanted, Plan(slopes=8), torn, workers=2)
    assert done.resumed > 0
    ours, theirs = torn.read_text().splitlines(), whole.read_text().splitlines()
    assert set(theirs) <= set(ours) and len(ours) == len(set(ours))
    sigs = [summary["isosig"] for summary in read_summaries(torn)]
    assert len(sigs) == len(set(sigs))
    with pytest.raises(InvalidRequest, match="another scan"):
        scan(wanted, Plan(slopes=9), torn)
    (tmp_path / "torn.jsonl.plan").unlink()
    with pytest.raises(InvalidRequest, match="without its plan"):
        scan(wanted, Plan(slopes=8), torn)


def test_a_scan_as_a_table(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    out = tmp_path / "s.jsonl"
    done = scan([POSITIVE], Plan(slopes=12, check=True), out)
    assert done.verdicts["boundary-reducible"] == 1 and done.pairs == [] and done.breaches == []
    assert write_table(out, tmp_path / "s.parquet") == 12
    table = pq.read_table(tmp_path / "s.parquet").to_pylist()
    assert Counter(row["verdict"] for row in table) == done.verdicts
    assert {row["isosig"] for row in table} == {POSITIVE} and {row["proof"] for row in table} == {"angles", "group"}


def test_planted_slopes_are_found_and_no_other(tmp_path: Path) -> None:
    """The handle on the planted slope gives the unlink's exterior back; no other small slope makes a disc."""
    for found in islice(drill.planted(6), 3):
        boundary = Boundary(found.manifold)
        checker = Checker()
        assert checker.check(manifold_record(found.manifold, found.angles)) is None
        decision = decide(boundary, found.slope)
        assert decision.verdict == "boundary-reducible"
        assert checker.check(json.loads(json.dumps(record_of(boundary, found.slope, decision)))) is None
        oracle = to_regina(attach_2handle(boundary, found.slope))
        oracle.simplify()
        group = oracle.group()
        assert group.countGenerators() == 2 and group.countRelations() == 0
        verdicts = {slope.key: decide(boundary, slope).verdict for slope in boundary.slopes(15)}
        assert [key for key, verdict in verdicts.items() if verdict == "boundary-reducible"] in ([found.slope.key], [])


def test_the_same_seed_plants_the_same() -> None:
    one, two = ([p.manifold.gluing for p in islice(drill.planted(6), 1)] for _ in range(2))
    assert one == two


def test_a_breach_is_looked_at_in_three_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two slopes of which one is no positive: the checker's verdict and Regina's disc say so."""
    boundary = Boundary(from_isosig(POSITIVE))
    slopes = list(boundary.slopes(10))
    good = next(s for s in slopes if decide(boundary, s).verdict == "boundary-reducible")
    bad = next(s for s in slopes if s.key != good.key)
    told = json.loads(watch.breach(POSITIVE, boundary, (good, bad), boundary.distance(good, bad), seconds=2.0))
    assert told["confirmed"] is False and told["checker"] == ["boundary-reducible", "simple"]
    assert told["distance_in_another_metric"] == told["distance"]
    assert told["regina_finds_a_disc"][0] in (True, None) and not told["regina_finds_a_disc"][1]
    assert watch.compresses(attach_2handle(boundary, good)) is True
    assert watch.double_is_irreducible(decide(boundary, good).gluing) is False
    progress = Progress()
    summary = {"kind": "summary", "isosig": POSITIVE, "verdicts": {}, "distances": [[1, 0, 10]], "breaches": ["{}"]}
    progress.add(summary)
    assert progress.pairs == [(POSITIVE, 10)] and progress.breaches == ["{}"]


def test_calls_that_cannot_be_interrupted_are_ended() -> None:
    with pytest.raises(OutOfTime, match=r"longer than 0\.5 s"):
        watch.in_time(time.sleep, 60, seconds=0.5)


@pytest.mark.parametrize("task", [FlipTask(), SlopeTask(), PairTask()], ids=lambda task: task.name)
def test_tasks_reward_what_they_ask_for(task: FlipTask | SlopeTask | PairTask) -> None:
    for problem in islice(task.problems(6), 3):
        assert task.prompt(problem) and not task.tools(problem)
        verdict = task.verify(problem, f"Some thoughts.\n{problem.answer}")
        expected = 1.0 if task.name != "topology-pair" else {3: 0.5, 4: 0.9, 5: 0.0}[problem.facts["genus"]]
        assert verdict.score == expected, verdict
        for wrong in ("", "no numbers", "[1, 2", '{"isosig": 3, "slopes": []}', "-5,-5", "1,2,3"):
            assert 0.0 <= task.verify(problem, wrong).score < 1.0


def test_flips_keep_a_curve_a_curve() -> None:
    """Weights after flips obey the triangle inequality, and a flip forth and back is none."""
    from random import Random

    from statepool.tasks.topology.flips import Flippable

    boundary, noise = Boundary(from_isosig("cMcabbjdw")), Random(1)
    for slope in boundary.slopes(20):
        here = Flippable.of(boundary, slope.weights)
        for _ in range(30):
            edge = noise.randrange(9)
            before = list(here.weights)
            if not here.flip(edge):
                continue
            for row in here.triangles:
                w = [here.weights[e] for e in row]
                assert sum(w) % 2 == 0 and 2 * max(w) <= sum(w)
            if noise.random() < 0.3:
                assert here.flip(edge) and here.weights == before
    assert not here.flip(99)


def test_attaching_leaves_the_boundary_a_theorem_predicts() -> None:
    """Separating: two components whose genera add up; not separating: genus less one."""
    boundary = Boundary(from_isosig(POSITIVE))
    assert certify(boundary.manifold) is not None
    for separating, genera in ((True, [1, 2]), (False, [2])):
        for slope in boundary.slopes(5, separating=separating):
            euler = Skeleton.of(attach_2handle(boundary, slope)).euler
            assert sorted(1 - e // 2 for e in euler) == genera
            plain = spine.attach(spine.decode(boundary.manifold.gluing), boundary.link_weights(slope.weights))
            assert sorted(spine.vertices(plain)[1]) == genera
