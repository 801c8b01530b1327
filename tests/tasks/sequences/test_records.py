"""Certificates, orbits, archive, files, plots, the commands and the task."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import xml.etree.ElementTree as ET
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statepool.tasks.sequences import (
    BadCertificate,
    Code,
    InvalidSequence,
    certify,
    checker,
    families,
    formats,
    make,
    orbit_key,
    parse,
    plots,
    verify,
)
from statepool.tasks.sequences.archive import Archive
from statepool.tasks.sequences.commands import main
from statepool.tasks.sequences.records import Record
from statepool.tasks.sequences.task import HELD_OUT, SequenceTask

BARKER = families.barker(13)
CASES = [
    ("labs", {}, (BARKER,)),
    ("labs", {}, (families.frank(4),)),
    ("labs", {}, (families.zadoff_chu(9),)),
    ("merit", {}, (BARKER,)),
    ("isl", {}, (BARKER,)),
    ("psl", {}, (BARKER,)),
    ("mmf-sir", {}, (families.legendre(31),)),
    ("mmf-sir", {"length": 40, "loss_min": -0.2}, (families.legendre(31),)),
    ("zcp", {"kind": 2}, (parse("+++++++---++-"), parse("++--++-++-+-+"))),
    ("moccs", {}, families.complementary_set(2, 8)),
    ("wisl", {"doppler": 0.25}, (BARKER,)),
    ("pmepr", {}, (BARKER,)),
]


@pytest.mark.parametrize(("name", "params", "codes"), CASES)
def test_a_certificate_holds_until_something_in_it_changes(name: str, params: dict, codes: tuple[Code, ...]) -> None:
    record, score = certify(make(name, params), codes, seed=1)
    assert Record.parse(record.json()) == record
    verify(record)
    content = json.loads(record.json())
    assert checker.check(content) is None
    step = -1 if score.value > 1 else 1
    for value in (str(score.exact + step) if score.exact is not None else repr(score.value * 1.001), "x", None):
        assert checker.check(content | {"value": value}) is not None
    assert checker.check(content | {"problem": "other"}) is not None
    assert checker.check(content | {"format": "other"}) is not None
    assert checker.check({key: item for key, item in content.items() if key != "codes"}) is not None
    if "filter" in content:
        worse = [str(int(tap) + (i == 3) * 10**12) for i, tap in enumerate(content["filter"])]
        assert checker.check(content | {"filter": worse}) is not None
        assert checker.check(content | {"filter": content["filter"][1:]}) is not None
    with pytest.raises(BadCertificate, match="orbit_key"):
        verify(Record(record.problem, record.codes, record.value, record.params, "other", record.filter))


def test_a_worse_filter_with_its_true_value_is_no_optimum() -> None:
    matched = [str(x) for x in BARKER.signs]
    record = json.loads(certify(make("mmf-sir"), [BARKER])[0].json())
    claim = record | {"filter": matched, "value": "169/12"}
    assert checker.check(claim) == "filter: is not the best one for this code"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"n": 4}', "null"])
def test_text_that_is_no_certificate(text: str, tmp_path: Path) -> None:
    with pytest.raises(BadCertificate, match="cannot be read"):
        Record.parse(text)
    wrong = json.loads(certify(make("labs"), [BARKER])[0].json())
    for change in ({"codes": ["fffff"]}, {"codes": ["3fff"]}, {"n": "13"}, {"codes": [5]}, {"alphabet": 2.0}):
        with pytest.raises(BadCertificate):
            Record.parse(json.dumps(wrong | change))


def test_the_checker_alone_needs_no_package(tmp_path: Path) -> None:
    record, _ = certify(make("mmf-sir"), [BARKER])
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text(record.json() + "\n")
    bad.write_text(record.json().replace('"37"', '"38"') + "\n" + "{\n")
    command = [sys.executable, "-I", "-S", checker.__file__]
    assert subprocess.run([*command, str(good)], capture_output=True, text=True).stdout.endswith("holds\n")
    done = subprocess.run([*command, str(good), str(bad)], capture_output=True, text=True)
    assert done.returncode == 1 and "38 is claimed" in done.stdout and "no JSON" in done.stdout
    assert "import statepool" not in Path(checker.__file__).read_text()


@given(st.lists(st.integers(0, 1), min_size=3, max_size=20), st.integers(0, 7))
def test_single_orbits(phases: list[int], form: int) -> None:
    code = np.array(phases)
    other = code ^ (form & 1)
    other = other ^ (np.arange(len(code)) % 2 * (form >> 1 & 1))
    other = other[::-1] if form & 4 else other
    objective = make("labs")
    one, two = Code(tuple(phases)), Code(tuple(other.tolist()))
    assert orbit_key(objective, [one]) == orbit_key(objective, [two])
    assert objective.score([one]).exact == objective.score([two]).exact


def test_orbits_count_what_burnside_counts() -> None:
    """Of 2^5 codes, the 8 forms leave as many orbits as the mean number of fixed codes says."""
    codes = [Code(tuple(i >> k & 1 for k in range(5))) for i in range(32)]
    fixed = 0
    for form in range(8):
        for code in codes:
            p = np.array(code.phases) ^ (form & 1) ^ (np.arange(5) % 2 * (form >> 1 & 1))
            fixed += tuple((p[::-1] if form & 4 else p).tolist()) == code.phases
    assert len({orbit_key(make("psl"), [code]) for code in codes}) == fixed // 8


@given(
    st.integers(3, 7).flatmap(lambda n: st.tuples(*[st.lists(st.integers(0, 5), min_size=n, max_size=n)] * 1)),
    st.integers(0, 5),
    st.integers(0, 5),
)
def test_polyphase_orbits(rows: tuple[list[int]], turn: int, ramp: int) -> None:
    code = Code(tuple(rows[0]), 6)
    other = Code(tuple((-(p + turn + ramp * i)) % 6 for i, p in enumerate(rows[0]))[::-1], 6)
    assert orbit_key(make("labs"), [code]) == orbit_key(make("labs"), [other])
    assert make("labs").score([code]).exact == make("labs").score([other]).exact


def test_pair_orbits() -> None:
    a, b = parse("++++++--+-+-+"), parse("+++--+-++--++")
    objective = make("zcp")
    turned = [Code(b.phases[::-1]), Code(tuple(1 - p for p in a.phases))]
    assert orbit_key(objective, [a, b]) == orbit_key(objective, turned)
    assert orbit_key(objective, [a, b]) != orbit_key(objective, [a, a])


def test_archive_keeps_each_orbit_once_and_ranks_them(tmp_path: Path) -> None:
    objective = make("labs")
    codes = ["+++++--++-+-+", "+++++--++-+--", "+-+-+-+-+-+-+", "+++++++++++++", "++--++--++--+"]
    with Archive(tmp_path / "a") as archive:
        assert [archive.add(certify(objective, [parse(c)])[0]) for c in codes] == [True, True, True, False, True]
        assert archive.add(certify(objective, [parse(codes[0][::-1])])[0]) is False
        assert archive.add(certify(make("psl"), [BARKER])[0])
        fake, _ = certify(objective, [BARKER])
        with pytest.raises(BadCertificate, match="is claimed"):
            archive.add(Record("labs", fake.codes, "5", {}, fake.orbit_key))
    with Archive(tmp_path / "a") as archive:
        values = [record.number for record in archive.best("labs", 13)]
        assert values == sorted(values) and len(values) == 4 and values[0] == 6
        assert [name.split()[0] for name, _ in archive.boards()] == ["labs", "psl"]
        assert len(archive) == 5
        assert list(archive.best("labs", 12)) == []
    sir = make("mmf-sir", {"loss_min": -0.5})
    with Archive(tmp_path / "b") as archive:
        for code in (BARKER, parse("+++++--++-+--"), parse("++++++-++-+--")):
            archive.add(certify(sir, [code])[0])
        values = [record.number for record in archive.best("mmf-sir", 13, {"loss_min": -0.5})]
        assert values == sorted(values, reverse=True) and len(values) == 3


@pytest.mark.parametrize("form", sorted(set(formats.FORMATS) - {"sigmf"}))
def test_files_come_back(form: str, tmp_path: Path) -> None:
    codes = [BARKER] if form == "sol" else [BARKER, families.barker(13)]
    suffix = {"mat": ".mat", "sol": ".sol"}.get(form, ".txt")
    [path] = formats.export(codes, form, tmp_path / f"codes{suffix}")
    if form == "rle":
        assert path.read_text() == "5 2 2 1 1 1 1\n" * 2
    elif form in ("hex", "readmemh"):
        assert path.read_text().splitlines()[-1] == "00ca"
    else:
        back = [code for group in formats.read_codes(path) for code in group]
        assert back == codes


def test_samples_for_a_radio(tmp_path: Path) -> None:
    data, meta = formats.export([families.frank(2)], "sigmf", tmp_path / "code.x")
    samples = np.array(struct.unpack("<8f", data.read_bytes()))
    assert np.allclose(samples, [1, 0, 1, 0, 1, 0, -1, 0], atol=1e-6)
    assert json.loads(meta.read_text())["global"]["core:datatype"] == "cf32_le"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.sol", b"# Energy 1\n0\n2\n", "neither 0 nor 1"),
        ("a.mat", b"short", "level 4"),
        ("a.mat", struct.pack("<5i", 0, 9, 9, 0, 2) + b"a\0", "no real double matrix"),
        ("a.txt", b"\n", "holds no code"),
        ("a.txt", b"+-?\n", "neither"),
    ],
)
def test_bad_files_are_named(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidSequence, match=words):
        formats.read_codes(tmp_path / name)


@pytest.mark.parametrize("kind", ["correlation", "filters", "ambiguity"])
def test_plots_are_pictures(kind: str) -> None:
    root = ET.fromstring(plots.draw(kind, BARKER))
    tags = [child.tag.rpartition("}")[2] for child in root]
    assert ("image" if kind == "ambiguity" else "polyline") in tags
    lines = [child for child in root if child.tag.endswith("polyline")]
    if kind == "correlation":  # the peak is in the middle at the top, the first sidelobe 20 log10(1/13) below
        points = [tuple(map(float, p.split(","))) for p in lines[0].get("points").split()]
        assert len(points) == 25 and min(points, key=lambda p: p[1]) == points[12]


def test_the_front_holds_what_no_point_beats() -> None:
    points = [(-3.0, 17.0), (-1.0, 13.0), (-2.0, 12.0), (-0.2, 8.0), (-2.5, 15.0)]
    lines = [c for c in ET.fromstring(plots.pareto(points)) if c.tag.endswith("polyline")]
    assert len(lines[0].get("points").split()) == 4


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    certificate, found = tmp_path / "c.jsonl", tmp_path / "found.jsonl"
    assert main(["eval", BARKER.text, "--objective", "mmf-sir", "--certificate", str(certificate)]) == 0
    assert json.loads(capsys.readouterr().out)["value"] == "37"
    search = ["search", "labs", "-n", "13", "--algo", "exhaustive", "--time", "60", "--out", str(found)]
    assert main([*search, "--archive", str(tmp_path / "store")]) == 0
    assert json.loads(capsys.readouterr().out)["value"] == "6"
    assert main(["verify", str(certificate), str(found)]) == 0
    assert "37 holds" in capsys.readouterr().out
    assert main(["leaderboard", str(tmp_path / "store"), "--add", str(certificate)]) == 0
    assert "mmf-sir n=13" in capsys.readouterr().out
    assert main(["leaderboard", str(tmp_path / "store"), "--problem", "labs", "-n", "13"]) == 0
    assert capsys.readouterr().out.split()[:2] == ["1", "6"]
    assert main(["plot", "pareto", str(certificate), "--out", str(tmp_path / "p.svg")]) == 0
    assert main(["export", str(certificate), "--fmt", "signs", "--out", str(tmp_path / "s.txt")]) == 0
    assert (tmp_path / "s.txt").read_text().strip() == BARKER.text
    assert main(["eval", str(tmp_path / "s.txt"), "--objective", "psl"]) == 0
    capsys.readouterr()
    certificate.write_text(certificate.read_text().replace('"37"', '"38"'))
    assert main(["verify", str(certificate)]) == 1
    assert "refused" in capsys.readouterr().out
    for arguments, words in (
        (["eval", "++", "--objective", "zcp"], "2 expected, 1 given"),
        (["eval", "--objective", "labs"], "name a file"),
        (["eval", "--family", "barker", "--objective", "labs"], "is not NAME=N"),
        (["search", "labs", "-n", "9"], "needs a limit"),
        (["eval", str(tmp_path / "none.txt"), "--objective", "labs"], "No such file"),
    ):
        assert main(arguments) == 2
        assert words in capsys.readouterr().err


def test_the_task_rewards_between_its_anchors() -> None:
    for held_out in (False, True):
        task = SequenceTask(held_out)
        first = list(islice(task.problems(4), 4))
        assert first == list(islice(task.problems(4), 4)) != list(islice(task.problems(5), 4))
        for problem in first:
            n = problem.facts["n"]
            assert (n in HELD_OUT) == held_out
            assert task.verify(problem, problem.answer).score == 1.0
            assert task.verify(problem, f"I think\n{problem.answer}").score == 1.0
            assert task.verify(problem, "+" * n).score == 0.0
            assert task.verify(problem, problem.answer + "+").score == 0.0
            assert "no code" in task.verify(problem, "none").reason
            drawn = np.random.default_rng(n).integers(0, 2, (9, n))
            scores = [task.verify(problem, Code(tuple(row)).text).score for row in drawn.tolist()]
            assert min(scores) == 0.0 and max(scores) < 1.0
            assert n < len(problem.messages[0]["content"])


def test_the_program_of_a_solution_prints_what_the_solution_says() -> None:
    task = SequenceTask(tool=True)
    scores = []
    for problem in islice(task.problems(6), 3):
        asks, tells, says = problem.rest
        called = json.loads(asks["content"].removeprefix("<tool_call>").removesuffix("</tool_call>"))
        assert called["name"] == task.tools(problem)[0]["function"]["name"] == "python"
        program = [sys.executable, "-c", called["arguments"]["code"]]
        printed = subprocess.run(program, capture_output=True, text=True, check=True).stdout.strip()
        assert printed == tells["content"] == says["content"] == problem.answer
        scores.append(task.verify(problem, problem.answer).score)
    assert sum(scores) > 0.0 and max(scores) <= 1.0
    plain = next(SequenceTask().problems(6))
    assert not SequenceTask().tools(plain) and plain.facts == next(task.problems(6)).facts


def test_what_a_model_only_thinks_is_no_answer() -> None:
    problem = next((task := SequenceTask()).problems(2))
    wrong = "+" * problem.facts["n"]
    assert task.verify(problem, f"<think>{problem.answer}</think>{wrong}").score == 0.0
    assert task.verify(problem, f"<think>{wrong}</think>{problem.answer}<|im_end|>").score == 1.0
