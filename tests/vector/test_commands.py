"""The command line of the room, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.vector.synthetic import clustered

from statepool.vector.commands import main


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "statepool.cli", "vector", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, np.ndarray, np.ndarray]:
    folder = tmp_path_factory.mktemp("vector")
    rows, queries = clustered(2000, 24, 20)
    np.save(folder / "rows.npy", rows)
    np.save(folder / "queries.npy", queries)
    done = run("build", folder / "rows.npy", folder / "index", "--window", "60")
    assert done.returncode == 0, done.stderr
    assert "2000 rows" in done.stdout
    return folder, rows, queries


def test_search_prints_what_brute_force_finds(made, capsys) -> None:
    folder, rows, queries = made
    done = run("search", folder / "index", folder / "queries.npy", "-k", "5", "--exact")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    for query, answer in zip(queries, answers, strict=True):
        truth = np.argsort(-(unit @ (query / np.linalg.norm(query))), kind="stable")[:5]
        assert answer["ids"] == truth.tolist()
    assert main(["search", str(folder / "index"), str(folder / "queries.npy"), "--recall"]) == 0
    said = capsys.readouterr().out
    assert float(said.split()[1].rstrip(",")) >= 0.97


def test_fvecs_and_ids(made, tmp_path: Path, capsys) -> None:
    _, rows, _ = made
    lengths = np.full((len(rows), 1), rows.shape[1], "<i4")
    np.hstack([lengths, rows.astype("<f4").view("<i4")]).tofile(tmp_path / "rows.fvecs")
    np.save(tmp_path / "ids.npy", np.arange(len(rows)) + 10**12)
    options = ["--ids", str(tmp_path / "ids.npy"), "--metric", "l2", "--no-seal", "--window", "40"]
    assert main(["build", str(tmp_path / "rows.fvecs"), str(tmp_path / "index"), *options]) == 0
    np.save(tmp_path / "one.npy", rows[:1])
    capsys.readouterr()
    assert main(["search", str(tmp_path / "index"), str(tmp_path / "one.npy"), "-k", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["ids"] == [10**12]


def test_stat_and_verify(made, tmp_path: Path, capsys) -> None:
    folder = made[0]
    assert main(["stat", str(folder / "index")]) == 0
    figures = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert (figures["rows"], figures["metric"], figures["sealed"]) == ("2000", "cos", "True")
    assert main(["verify", str(folder / "index")]) == 0
    raw = bytearray((folder / "index").read_bytes())
    raw[70_000] ^= 4
    (tmp_path / "bad").write_bytes(raw)
    assert main(["verify", str(tmp_path / "bad")]) == 1
    assert "at byte 69632 are damaged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("search", "{}/rows.npy", "{}/queries.npy"), "does not begin like an index"),
        (("search", "{}/missing", "{}/queries.npy"), "No such file"),
        (("search", "{}/index", "{}/index"), "is no .npy file"),
        (("search", "{}/index", "{}/flat.npy"), "rows [n, dim] are needed"),
        (("build", "{}/odd.fvecs", "{}/other"), "is no .fvecs file"),
        (("build", "{}/rows.npy", "{}/missing/index"), "cannot write"),
        (("build", "{}/rows.npy", "{}/other", "--degree", "17"), "multiple of 16"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(made, capsys, arguments, says: str) -> None:
    folder = made[0]
    np.save(folder / "flat.npy", np.zeros(4))
    (folder / "odd.fvecs").write_bytes(b"\x02\0\0\0abcd")
    assert main([part.format(folder) for part in arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (folder / "other").exists()
