"""Text ids, wherever integers may be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.vector.synthetic import clustered, distances

from statepool.core.errors import InvalidRequest, NotFound
from statepool.vector import (
    Index,
    IndexCorruptError,
    LiveIndex,
    RetrievalTool,
    open,  # noqa: A004 - the name users know from files
    verify,
)
from statepool.vector.commands import main
from statepool.vector.names import Names

ROWS, QUERIES = clustered(1500, 16, 20)
TEXTS = [f"docs/file {number}.md#ä{number % 7}" for number in range(1500)]


def made(count: int = 1000, **options: object) -> Index:
    index = Index(16, "l2", R=16, build_window=48, **options)  # type: ignore[arg-type]
    index.build(ROWS[:count], TEXTS[:count])
    return index


def nearest(rows: np.ndarray, texts: list[str], query: np.ndarray, k: int = 5) -> list[str]:
    order = np.argsort(distances("l2", rows, query[None])[0], kind="stable")[:k]
    return [texts[place] for place in order]


@pytest.mark.parametrize("sealed", [False, True])
def test_a_built_index_answers_with_texts_from_memory_and_from_its_file(sealed: bool, tmp_path: Path) -> None:
    index = made()
    if sealed:
        index.seal()
    index.save(tmp_path / "one.index")
    assert verify(tmp_path / "one.index").ok
    for one in (index, open(tmp_path / "one.index"), open(tmp_path / "one.index", mmap=False)):
        assert one.ids().tolist() == TEXTS[:1000]
        for query in QUERIES:
            assert one.exact(query, 5).ids.tolist() == nearest(ROWS[:1000], TEXTS, query)
            assert one.search(query, 1, 200).ids.tolist() == nearest(ROWS[:1000], TEXTS, query, 1)
        assert TEXTS[3] in one
        assert "nobody" not in one
        assert 3 not in one
        np.testing.assert_array_equal(one.get([TEXTS[9], TEXTS[4]]), ROWS[[9, 4]])
        with pytest.raises(NotFound, match="nobody"):
            one.get(["nobody"])


def test_changes_survive_by_their_texts(tmp_path: Path) -> None:
    path = tmp_path / "one.index"
    made().save(path)
    model = dict(zip(TEXTS[:1000], ROWS[:1000], strict=True))
    with open(path, "rw", durability="process") as index:
        index.add(ROWS[1000:1200], TEXTS[1000:1200])
        index.update([TEXTS[5], TEXTS[1100]], ROWS[1300:1302])
        assert index.delete([TEXTS[6], TEXTS[1101], "nobody"]) == 2
        index.add(ROWS[1400:1401], [TEXTS[6]])  # the same name again
        with index.snapshot() as kept:
            index.delete([TEXTS[7]])
            assert TEXTS[7] in kept
            assert TEXTS[7] in kept.search(ROWS[7], 1, 200).ids
    model |= dict(zip(TEXTS[1000:1200], ROWS[1000:1200], strict=True))
    model |= {TEXTS[5]: ROWS[1300], TEXTS[1100]: ROWS[1301], TEXTS[6]: ROWS[1400]}
    del model[TEXTS[1101]], model[TEXTS[7]]
    for _ in range(2):
        again = open(path)
        assert set(again.ids().tolist()) == set(model)
        assert len(again) == len(model)
        names = sorted(model)
        np.testing.assert_array_equal(again.get(names), np.stack([model[one] for one in names]))
        for query in QUERIES:
            assert again.exact(query, 5).ids.tolist() == nearest(np.stack([model[n] for n in names]), names, query)
            assert set(again.search(query, 10, 80).ids.tolist()) <= set(model)
        with open(path, "rw") as index:
            index.compact()


def test_an_empty_index_of_texts_takes_texts_and_nothing_else() -> None:
    index = LiveIndex(16, "l2", text_ids=True)
    index.add(ROWS[:3], TEXTS[:3])
    index.add(ROWS[3:5], np.array(TEXTS[3:5]))
    assert set(index.search(ROWS[1], 5).ids.tolist()) == set(TEXTS[:5])
    with pytest.raises(InvalidRequest, match="text ids"):
        index.add(ROWS[5:7], [5, 6])
    with pytest.raises(InvalidRequest, match="twice"):
        index.add(ROWS[5:7], ["same", "same"])
    with pytest.raises(InvalidRequest, match=r"file 1\.md.*already"):
        index.add(ROWS[5:6], [TEXTS[1]])
    with pytest.raises(NotFound, match="nobody"):
        index.update(["nobody"], ROWS[:1])
    built = index.compact()
    assert sorted(built.ids().tolist()) == sorted(TEXTS[:5])
    with pytest.raises(InvalidRequest, match="5 texts"):
        built.__class__.of(built.settings).build(ROWS[:5], range(5))
    with pytest.raises(InvalidRequest, match="integers"):
        LiveIndex(16).add(ROWS[:2], TEXTS[:2])


def test_two_texts_of_one_number_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("statepool.vector.names._number", len)
    index = LiveIndex(16, text_ids=True)
    index.add(ROWS[:1], ["one"])
    for change in (lambda: index.add(ROWS[1:2], ["two"]), lambda: index.update(["two"], ROWS[1:2])):
        with pytest.raises(InvalidRequest, match="'two' and 'one' have one hash"):
            change()
    with pytest.raises(InvalidRequest, match="one hash"):
        index.add(ROWS[1:3], ["four", "five"])
    assert "two" not in index
    with pytest.raises(NotFound):
        index.get(["two"])
    assert index.ids().tolist() == ["one"]


def test_a_file_whose_texts_are_not_those_of_its_rows_is_refused(tmp_path: Path) -> None:
    index = made(10)
    index._ids = index._ids[::-1].copy()  # type: ignore[index]
    index.save(tmp_path / "fine.index")  # turned round as a whole: texts go by their rows
    assert open(tmp_path / "fine.index").ids().tolist() == TEXTS[:10][::-1]
    index.names.sections = lambda keys: Names.sections(index.names, keys[::-1])  # type: ignore[method-assign, union-attr]
    index.save(tmp_path / "wrong.index")
    with pytest.raises(IndexCorruptError, match="contradicts"):
        open(tmp_path / "wrong.index")


def test_the_commands_and_the_tool_take_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "one.index")
    np.save(tmp_path / "rows.npy", ROWS[:500])
    np.save(tmp_path / "more.npy", ROWS[500:510])
    np.save(tmp_path / "queries.npy", ROWS[505:506])
    (tmp_path / "ids.txt").write_text("\n".join(TEXTS[:500]), encoding="utf-8")
    (tmp_path / "more.txt").write_text("\n".join(TEXTS[500:510]) + "\n", encoding="utf-8")
    assert main(["build", str(tmp_path / "rows.npy"), path, "--ids", str(tmp_path / "ids.txt"), "--metric", "l2"]) == 0
    assert main(["add", path, str(tmp_path / "more.npy")]) == 2
    assert "text ids" in capsys.readouterr().err
    assert main(["add", path, str(tmp_path / "more.npy"), "--ids", str(tmp_path / "more.txt")]) == 0
    assert main(["add", path, str(tmp_path / "more.npy"), "--ids", str(tmp_path / "more.txt")]) == 2
    assert "already" in capsys.readouterr().err
    again = ["add", path, str(tmp_path / "more.npy"), "--ids", str(tmp_path / "more.txt"), "--update"]
    assert main(again) == 0
    capsys.readouterr()
    assert main(["search", path, str(tmp_path / "queries.npy"), "-k", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["ids"] == [TEXTS[505]]
    tool = RetrievalTool(open(path), lambda _: ROWS[505], {one: one.upper() for one in TEXTS})
    assert tool("anything", 1)[0]["text"] == TEXTS[505].upper()
