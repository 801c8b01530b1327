"""The commands a user types, in processes of their own."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import statepool.store
from statepool.core.errors import NotFound
from statepool.store import selfbench

from .net_processes import processes, unix


def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "statepool.cli", "store", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with statepool.store.open(tmp_path / "s") as store:
        store.dict("d", keys="str").update({"é": b"text", "b": b"\xff\xfe"})
        store.sorted_dict("t").update((b"%04d" % i, b"") for i in range(700))
        store.queue("q").put_many([b"one", b"two"])
        store.stack("s").push(b"top")
    return tmp_path / "s"


@pytest.mark.parametrize("how", ["as its owner", "beside its owner", "through its daemon"])
def test_dump_and_status(path: Path, how: str) -> None:
    with contextlib.ExitStack() as stack:
        place: Any = path
        if how == "beside its owner":
            stack.enter_context(statepool.store.open(path))
        elif how == "through its daemon":
            place = unix(path.parent, "socket")
            stack.enter_context(processes())("serve", path, "--listen", place)
        shown_by_both(place)


def shown_by_both(place: Path | str) -> None:
    done = run("dump", place)
    assert (done.returncode, done.stderr) == (0, "")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    by_name = {name: [(r["key"], r["value"]) for r in records if r["structure"] == name] for name in "dtqs"}
    assert dict(by_name["d"]) == {"é": "text", "b": {"base64": "//4="}}
    assert by_name["t"] == [(f"{i:04}", "") for i in range(700)]
    assert by_name["q"] == [(1, "one"), (2, "two")]
    assert by_name["s"] == [(0, "top")]
    done = run("status", place)
    assert done.returncode == 0
    assert "applied_lsn" in done.stdout and "sorted_dict      t: 700 entries" in done.stdout


def test_fsck_says_what_is_wrong(path: Path) -> None:
    done = run("fsck", path)
    assert (done.returncode, done.stdout) == (0, "4 structures, 709 operations: sound\n")
    log = path / "log" / "0000000000000001"
    with log.open("r+b") as file:
        file.seek(4096 + 200)  # in the first frame
        byte = file.read(1)
        file.seek(4096 + 200)
        file.write(bytes([byte[0] ^ 1]))
    done = run("fsck", path)
    assert done.returncode == 2
    assert "damaged frame at byte 4096" in done.stderr


def test_no_store_and_wrong_commands(tmp_path: Path) -> None:
    for command in ("status", "dump", "fsck"):
        done = run(command, tmp_path / "none")
        assert done.returncode == 2
        assert "there is no" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert run("nothing").returncode == 2


def test_crashtest(path: Path) -> None:
    done = run("crashtest", "--seed", 3, "--histories", 1, "--operations", 6)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("states, 0 violations\n")


def test_bench_counts_what_it_did(tmp_path: Path) -> None:
    done = run("bench", tmp_path, "--seconds", "0.02", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    rates = json.loads(done.stdout)
    assert next(iter(rates)) == "raw writes of 4 KiB"
    assert len(rates) == 7
    assert all(rate > 0 for rate in rates.values())
    assert not list(tmp_path.iterdir()), "nothing is left behind"
    lines = run("bench", tmp_path, "--seconds", "0.01").stdout.splitlines()
    assert lines[0].endswith("/s  raw writes of 4 KiB")
    assert len(lines) == 7


@pytest.mark.parametrize(("arguments", "field"), [(["missing"], "path:"), ([".", "--seconds", "0"], "seconds:")])
def test_bench_says_what_it_cannot_measure(arguments: list[str], field: str) -> None:
    done = run("bench", *arguments)
    assert done.returncode == 2
    assert f"statepool store bench: {field}" in done.stderr


def test_a_failing_thread_fails_the_measurement() -> None:
    def work(turn: int) -> int:
        raise NotFound("nothing there")

    with pytest.raises(NotFound, match="nothing there"):
        selfbench._crowd(work, 0.01, 4)


@pytest.mark.parametrize(
    ("command", "options", "says"),
    [
        ("serve", ("--listen", "here"), "address: 'here'"),
        ("serve", ("--listen", "tcp://127.0.0.1:1", "--witness", "there"), "address: 'there'"),
        ("mirror", ("--of", "here"), "address: 'here'"),
        ("witness", ("--listen", "here"), "address: 'here'"),
        ("promote", ("--force",), "is no mirror's"),
        ("promote", ("--force", "--of", "here"), "address: 'here'"),
    ],
)
def test_a_mistake_is_told_before_anything_is_made(
    tmp_path: Path, command: str, options: tuple[str, ...], says: str
) -> None:
    done = run(command, tmp_path / "new", *options)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("option", ["--histories", "--operations"])
def test_a_crashtest_of_nothing_is_refused(option: str) -> None:
    done = run("crashtest", option, "0")
    assert (done.returncode, done.stdout) == (2, "")
    assert option.strip("-") in done.stderr
