"""The commands a user types, in processes of their own where that matters."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from statepool.tasks.topology import checker
from statepool.tasks.topology.commands import main

SIG, WEIGHTS = "cMcabbjdw", "0,2,2,0,0,2,2,2,2"


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_from_a_census_to_a_checked_certificate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["census", "--tets", "2"]) == 0
    assert lines(capsys)[0] == SIG
    assert main(["census", "--tets", "3", "--count"]) == 0
    assert lines(capsys) == ["74"]
    assert main(["slopes", SIG, "--limit", "2"]) == 0
    first, second = lines(capsys)
    assert first == WEIGHTS
    assert main(["add", SIG, "--weights", first]) == 0
    assert json.loads(lines(capsys)[0])["boundary"] == [1, 1]
    assert main(["distance", SIG, first, second]) == 0
    assert lines(capsys) == ["4"]
    file = tmp_path / "c.jsonl"
    assert main(["decide", SIG, "--weights", first, "--certificate", str(file)]) == 0
    told = json.loads(lines(capsys)[0])
    assert told["verdict"] == "simple"
    assert main(["verify", str(file)]) == 0
    assert "1 manifold, 1 simple" in lines(capsys)[0]
    file.write_text(file.read_text().replace('"numerators": [', '"numerators": [1, '))
    assert main(["verify", str(file)]) == 1
    assert "refused: angles" in lines(capsys)[0]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["decide", SIG, "--weights", "1,2"], "has 9 edges, 2 weights were given"),
        (["decide", SIG, "--weights", "a"], "no list of whole numbers"),
        (["decide", SIG, "--weights", "2,2,2,2,2,2,2,2,2"], "goes around the vertex and bounds a disc"),
        (["decide", SIG, "--weights", "0,0,0,0,0,0,0,0,0"], "all 0"),
        (["decide", SIG, "--weights", "0,4,4,0,0,4,4,4,4"], "not connected"),
        (["decide", SIG, "--weights", "1,0,0,0,0,0,0,0,0"], "odd number"),
        (["decide", SIG, "--weights", "8,0,0,0,0,0,0,0,0"], "inequality"),
        (["decide", SIG, "--weights=-2,2,2,0,0,2,2,2,2"], "whole numbers from 0"),
        (["slopes", "zz"], "no isomorphism signature"),
        (["census", "--tets", "9"], "1 to 7 tetrahedra"),
        (["census", "--tets", "3", "--edges", "3"], "1 to 2 edges"),
        (["scan", "--out", "x.jsonl"], "name a census"),
        (["scan", "--census", "3", "--out", "x.jsonl"], "not TETS:EDGES"),
        (["verify", "missing.jsonl"], "No such file"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert reason in told and len(told.splitlines()) == 1


def test_the_checker_needs_no_package() -> None:
    code = "import sys, statepool.tasks.topology.checker\nprint({'regina', 'numpy', 'flint'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    assert checker.main([]) == 0


def test_pictures_are_svg_and_the_same_each_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import xml.etree.ElementTree as ET

    for what in ("slope", "distances"):
        files = [tmp_path / f"{what}{i}.svg" for i in range(2)]
        for file in files:
            assert main(["plot", what, SIG, "--limit", "5", "--out", str(file)]) == 0
        one, two = (file.read_text() for file in files)
        assert one == two and ET.fromstring(one).tag.endswith("svg")
    assert main(["plot", "distances", SIG, "--limit", "1", "--out", str(tmp_path / "x.svg")]) == 2
    assert "needs two slopes" in capsys.readouterr().err


def test_planting_writes_certificates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "p.jsonl"
    assert main(["plant", "--limit", "2", "--seed", "6", "--out", str(file)]) == 0
    assert [json.loads(line)["verdict"] for line in lines(capsys)] == ["boundary-reducible"] * 2
    assert main(["verify", str(file)]) == 0
    assert "2 boundary-reducible, 2 manifold" in lines(capsys)[0]
