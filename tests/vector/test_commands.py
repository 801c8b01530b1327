"""The command line of the room, as a user runs it."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from tests.vector.synthetic import clustered

from statepool.vector import open as open_index
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


# Five rows of dimension 4 that hnswlib 0.8.0 saved, labels 9, 8, 7, 6 and 2^40, 7 deleted; value j of row i:
# (4 i + j) ** 1.5.
HNSWLIB = (
    "eNpjYIAANijNCqV1oLQKlBaB0kxoNAsa/1+Tdqq76Hd7LiifEYoxQYP9ZxZTh4duyxw4cZgNBY5rHhk5rlTLdqzTnOLIAVfDCDaXGUnhZ5atjgwMNxyL"
    "fv9xLHsn6MSOZB4TkltB4KGbmpNkrbVTWkegE1tihhMbknuZMd3q1Kzf46S7Z4ZT3OKlTjCFEmj+Y0RyOw+af7CpRQcA44Ignw=="
)


def test_convert_takes_over_rows_and_labels_of_hnswlib(tmp_path: Path, capsys) -> None:
    (tmp_path / "theirs").write_bytes(zlib.decompress(base64.b64decode(HNSWLIB)))
    command = ["convert", "--from", "hnswlib", str(tmp_path / "theirs"), str(tmp_path / "index"), "--metric", "l2"]
    assert main([*command, "--window", "32"]) == 0
    index = open_index(tmp_path / "index")
    values = np.arange(20).reshape(5, 4).astype(np.float32) ** 1.5
    assert sorted(index.ids().tolist()) == [6, 8, 9, 2**40]
    np.testing.assert_allclose(index.get([9, 8, 6, 2**40]), values[[0, 1, 3, 4]], rtol=1e-6)
    raw = (tmp_path / "theirs").read_bytes()
    for bad in (b"", raw[:90], raw[:200], bytes(200), raw[:24] + b"\xff" + raw[25:]):
        (tmp_path / "theirs").write_bytes(bad)
        assert main(command) == 2
        assert "is no index of hnswlib" in capsys.readouterr().err


def test_add_filter_and_compact(made, tmp_path: Path, capsys) -> None:
    rows = made[1]
    names = ("rows", "more")
    for name, part in zip(names, (rows[:300], rows[300:400]), strict=True):
        np.save(tmp_path / f"{name}.npy", part)
        lines = [json.dumps({"lang": ("de", "en")[i % 2], "ts": i}) for i in range(len(part))]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    at = {name: str(tmp_path / name) for name in ("index", "rows.npy", "rows.jsonl", "more.npy", "more.jsonl")}
    columns = ["--column", "lang=str", "--column", "ts=i64", "--columns", at["rows.jsonl"]]
    assert main(["build", at["rows.npy"], at["index"], "--window", "40", "--metric", "l2", *columns]) == 0
    assert main(["add", at["index"], at["more.npy"], "--columns", at["more.jsonl"]]) == 0
    assert "400 rows, 100 of them new" in capsys.readouterr().out
    np.save(tmp_path / "ids.npy", np.arange(100))
    again = ["add", at["index"], at["more.npy"], "--columns", at["more.jsonl"], "--ids", str(tmp_path / "ids.npy")]
    assert main(again) == 2
    assert "ids: 0 is in the index already; --update replaces it" in capsys.readouterr().err
    assert main([*again, "--update"]) == 0
    np.save(tmp_path / "one.npy", rows[300:301])
    ask = [
        "search",
        at["index"],
        str(tmp_path / "one.npy"),
        "-k",
        "400",
        "--filter",
        '{"lang": "de", "ts": {"lt": 100}}',
    ]
    for _ in range(2):
        capsys.readouterr()
        assert main(ask) == 0
        found = json.loads(capsys.readouterr().out)
        assert set(found["ids"]) == {i for i in (*range(100), *range(300, 400)) if i % 2 == 0}
        assert set(found["ids"][:2]) == {0, 300}
        assert main(["compact", at["index"]]) == 0
    assert "0 changes written" in capsys.readouterr().out
    assert main([*ask[:-1], "{"]) == 2
    assert "filter: is no JSON" in capsys.readouterr().err
    (tmp_path / "more.jsonl").write_text('{"lang": "de"}\nnonsense\n')
    assert main(["add", at["index"], at["more.npy"], "--columns", at["more.jsonl"]]) == 2
    assert "line 2 is no JSON" in capsys.readouterr().err


def test_a_reader_that_leaves_ends_the_command_quietly(made) -> None:
    folder = made[0]
    command = [
        sys.executable,
        "-m",
        "statepool.cli",
        "vector",
        "search",
        folder / "index",
        folder / "queries.npy",
        "-k",
        "500",
    ]
    done = subprocess.Popen([*map(str, command), "--ef", "2000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.stdout is not None
    done.stdout.read(10)
    done.stdout.close()
    assert done.wait(timeout=60) == 0
    assert done.stderr is not None
    assert done.stderr.read() == b""
    done.stderr.close()


def test_ctrl_c_ends_a_command_with_130(made) -> None:
    folder = made[0]
    code = (
        "import signal, sys, time; from statepool import cli; from statepool.vector import Index\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job ignores it
        "Index.build = lambda *_, **__: (print('ready', flush=True), time.sleep(60))\n"
        f"sys.exit(cli.main(['vector', 'build', {str(folder / 'rows.npy')!r}, {str(folder / 'none')!r}]))"
    )
    done = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.stdout is not None
    assert done.stdout.readline() == b"ready\n"
    done.send_signal(signal.SIGINT)
    assert done.communicate(timeout=60) == (b"", b"")
    assert done.returncode == 130
    assert not (folder / "none").exists()


def test_bench_prints_recall_and_time_for_every_ef(made, capsys) -> None:
    folder, rows, queries = made
    arguments = ["bench", str(folder / "index"), str(folder / "queries.npy"), "-k", "5", "--ef", "3,5,40,400"]
    assert main([*arguments, "--repeats", "1"]) == 0
    head, _, *lines = capsys.readouterr().out.splitlines()
    assert "2000 rows, 20 queries, k 5, threads 1, path graph" in head
    table = [list(map(float, line.split())) for line in lines]
    assert [row[0] for row in table] == [5, 40, 400], "an ef below k is no search"
    index = open_index(folder / "index")
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    for ef, recall, mean, p50, p99, distances in table:
        found = [index.search(query, 5, int(ef)) for query in queries]
        truth = [np.argsort(-(unit @ query), kind="stable")[:5] for query in queries]
        hits = sum(len(np.intersect1d(one.ids, best)) for one, best in zip(found, truth, strict=True))
        assert recall == pytest.approx(hits / 100, abs=0.021), "ties aside"
        assert distances == pytest.approx(sum(one.stats.ndc for one in found) / 20, abs=1)
        assert 0 < p50 <= p99
        assert 0 < mean <= p99 * 20
    assert main(["bench", str(folder / "index"), str(folder / "queries.npy"), "--ef", "3"]) == 2
    assert "ef: none is 10" in capsys.readouterr().err
