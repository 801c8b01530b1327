"""What a user can do wrong is one clear error that names the field and the fix, and changes nothing."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from tests.vector.synthetic import clustered, distances

from statepool.core.errors import InvalidRequest, NotFound
from statepool.vector import (
    DimensionError,
    Index,
    IndexCorruptError,
    LiveIndex,
    open,  # noqa: A004 - the name users know from files
)
from statepool.vector.log import log_path

ROWS = np.eye(8, dtype=np.float32) + 1


@pytest.fixture
def path(tmp_path: Path) -> Path:
    index = Index(8, "cos", R=16, build_window=16, columns={"lang": "str"})
    index.build(ROWS, columns={"lang": ["de"] * 8})
    index.save(tmp_path / "index")
    return tmp_path / "index"


ONE = {"columns": {"lang": ["de"]}}


@pytest.mark.parametrize(
    ("call", "kind", "says"),
    [
        (lambda ix: ix.add(np.ones((1, 7)), [9], **ONE), DimensionError, "X: has 7 values per vector; the index has 8"),
        (lambda ix: ix.add(np.ones(8), [9], **ONE), DimensionError, "X: has 1 axes, not 2"),
        (lambda ix: ix.add(np.array([["a"] * 8]), [9], **ONE), InvalidRequest, "X: dtype <U1 is not numeric"),
        (lambda ix: ix.add(np.ones((1, 8)) * 1j, [9], **ONE), InvalidRequest, "X: dtype complex128 is not numeric"),
        (lambda ix: ix.add(np.zeros((1, 8)), [9], **ONE), InvalidRequest, "X: row 0 is zero, which has no direction"),
        (lambda ix: ix.add(np.full((1, 8), np.inf), [9], **ONE), InvalidRequest, "X: row 0 holds NaN or infinity"),
        (lambda ix: ix.add(np.full((1, 8), 1e300), [9], **ONE), InvalidRequest, "X: row 0 holds NaN or infinity"),
        (lambda ix: ix.add(ROWS[:2], [9, 9], columns={"lang": ["a", "b"]}), InvalidRequest, "ids: an id occurs twice"),
        (lambda ix: ix.add(ROWS[:1], [7], **ONE), InvalidRequest, "ids: 7 is in the index already; update it"),
        (lambda ix: ix.add(ROWS[:1], [2**63], **ONE), InvalidRequest, "ids: 9223372036854775808 is above"),
        (lambda ix: ix.add(ROWS[:1], [-1], **ONE), InvalidRequest, "ids: -1 is outside 0 to"),
        (lambda ix: ix.add(ROWS[:1], [1.5], **ONE), InvalidRequest, "ids: must be 1 integers"),
        (lambda ix: ix.add(ROWS[:1], ["nine"], **ONE), InvalidRequest, "ids: must be 1 integers"),
        (lambda ix: ix.add(ROWS[:2], [9], **ONE), InvalidRequest, "ids: must be 2 integers, one per row"),
        (lambda ix: ix.add(ROWS[:1], [9]), InvalidRequest, "columns: 'lang' is missing"),
        (lambda ix: ix.update([99], ROWS[:1], **ONE), NotFound, "ids: 99 is not in the index; add it"),
        (lambda ix: ix.delete([1, 1]), InvalidRequest, "ids: an id occurs twice"),
        (lambda ix: ix.get([2**70]), NotFound, "ids: 1180591620717411303424 is not in the index"),
        (lambda ix: ix.search(np.ones(8), 0), InvalidRequest, "k: 0 is outside 1 to ef"),
        (lambda ix: ix.search(np.ones(8), 65, 64), InvalidRequest, "k: 65 is outside 1 to ef .64.; raise ef"),
        (lambda ix: ix.search(np.ones(9)), DimensionError, "q: has 9 values"),
        (lambda ix: ix.search(np.zeros(8)), InvalidRequest, "q: is zero"),
        (lambda ix: ix.search(np.zeros(8), filter={"lang": "de"}), InvalidRequest, "q: is zero"),
        (lambda ix: ix.search(np.full(8, np.nan), filter={"lang": "de"}), InvalidRequest, "q: holds NaN"),
        (lambda ix: ix.search(np.ones(8), engine="edge"), InvalidRequest, "engine: 'edge' is none of"),
        (lambda ix: ix.search(np.ones(8), threads=0), InvalidRequest, "threads: 0 is no integer"),
        (lambda ix: ix.exact(np.ones(8), 0), InvalidRequest, "k: 0 is no integer from 1"),
        (lambda ix: ix.range_search(np.ones(8), np.nan), InvalidRequest, "radius: nan is not finite"),
        (lambda ix: ix.search_batch(np.ones(8)), DimensionError, "Q: has 1 axes, not 2"),
    ],
)
def test_one_clear_error(path: Path, call, kind: type[Exception], says: str) -> None:
    with open(path, "rw") as index:
        log = log_path(path).read_bytes()
        with pytest.raises(kind, match=says):
            call(index)
        assert log_path(path).read_bytes() == log
        assert index.ids().tolist() == list(range(8))
        assert index.stats()["changed"] == index.stats()["dead"] == 0
        with index.snapshot() as frozen:
            assert len(frozen) == 8
        index.add(ROWS[:1], [9], **ONE)


def test_what_is_no_error(path: Path) -> None:
    with open(path, "rw") as index:
        assert index.add(np.empty((0, 8)), [], columns={"lang": []}) == 0
        assert index.update([], np.empty((0, 8)), columns={"lang": []}) == 0
        assert index.delete([]) == 0
        assert index.delete([99]) == 0
        index.add(
            np.asfortranarray(np.ones((16, 16)))[::8, ::2].astype(np.float16), [10, 11], columns={"lang": ["a", "b"]}
        )
        np.testing.assert_allclose(index.get([10, 11]), np.full((2, 8), 8**-0.5), rtol=1e-3)
        assert len(index.search(np.ones(8), 64).ids) == 10


@pytest.mark.parametrize("name", ["index", "log"])
@pytest.mark.parametrize(
    ("damage", "kind", "says"),
    [
        (lambda raw: b"", IndexCorruptError, "at byte 0"),
        (lambda raw: raw[:10], IndexCorruptError, "at byte 0"),
        (lambda raw: b"x" + raw[1:], IndexCorruptError, "does not begin like"),
    ],
)
def test_files_that_are_none(path: Path, name: str, damage, kind: type[Exception], says: str) -> None:
    with open(path, "rw") as index:
        index.delete([1])
    target = path if name == "index" else log_path(path)
    target.write_bytes(damage(target.read_bytes()))
    for mode in ("r", "rw"):
        with pytest.raises(kind, match=says):
            open(path, mode)


def test_a_log_of_the_future(path: Path) -> None:
    with open(path, "rw") as index:
        index.delete([1])
    raw = bytearray(log_path(path).read_bytes())
    raw[8] = 2
    log_path(path).write_bytes(raw)
    with pytest.raises(InvalidRequest, match="has format 2; this version reads 1"):
        open(path)


def test_no_such_file_makes_none(tmp_path: Path) -> None:
    for mode in ("r", "rw"):
        with pytest.raises(FileNotFoundError):
            open(tmp_path / "none", mode)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(path: Path) -> None:
    """As another user, for root may write anywhere."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        copy = Path(folder) / "index"
        copy.write_bytes(path.read_bytes())
        copy.chmod(0o644)
        code = (
            "import os, sys, statepool.vector as v, numpy as np\n"
            "import statepool.core.wire\n"
            "if os.getuid() == 0: os.setuid(65534)\n"
            "else: os.chmod(os.path.dirname(sys.argv[1]), 0o555)\n"
            "index = v.open(sys.argv[1])\n"
            "print(len(index.search(np.ones(8), 3).ids))\n"
            "for call in (lambda: v.open(sys.argv[1], 'rw'), lambda: index.save(sys.argv[1])):\n"
            "    try: call()\n"
            "    except Exception as error: print(type(error).__name__, error)\n"
        )
        done = subprocess.run([sys.executable, "-c", code, str(copy)], capture_output=True, text=True, check=False)
        Path(folder).chmod(0o755)
        assert done.returncode == 0, done.stderr
        found, locked, unsaved = done.stdout.splitlines()
        assert found == "3"
        assert locked.startswith("StoreReadOnly path: cannot write in")
        assert unsaved.startswith("InvalidRequest path: cannot write in")
        assert [one.name for one in Path(folder).iterdir()] == ["index"]


def test_one_thread_gives_the_same_bits_in_every_process(tmp_path: Path) -> None:
    """Of changes, their replay and a filtered search too."""
    rows, queries = clustered(400, 8, 5, seed=2)
    built = Index(8, "l2", R=16, build_window=32, columns={"n": "i64"})
    built.build(rows[:200], columns={"n": range(200)})
    built.save(tmp_path / "index")
    with open(tmp_path / "index", "rw") as index:
        index.add(rows[200:], range(200, 400), columns={"n": range(200, 400)})
        index.delete(range(0, 400, 7))
    np.save(tmp_path / "queries.npy", queries)
    code = (
        "import sys, numpy as np, statepool.vector as v\n"
        "index = v.open(sys.argv[1] + '/index')\n"
        "for query in np.load(sys.argv[1] + '/queries.npy'):\n"
        "    for chosen in (None, {'n': {'lt': 300}}):\n"
        "        found = index.search(query, 10, 20, filter=chosen)\n"
        "        print(found.ids.tolist(), found.distances.tobytes().hex(), found.stats)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert first == second
    truth = distances("l2", rows, queries)[0]
    truth[::7] = np.inf
    assert first.startswith(str(np.argsort(truth)[:10].tolist())[:20])


def test_an_index_without_a_file_needs_no_closing() -> None:
    with LiveIndex(8) as index:
        index.add(ROWS, range(8))
    assert len(index) == 8
