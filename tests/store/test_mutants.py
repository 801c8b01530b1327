"""Bugs put into a copy of the code: for each of them there is a test that notices."""

from __future__ import annotations

from pathlib import Path

import pytest

from .mutants.catalog import MUTANTS
from .mutants.mutant import Mutant
from .mutants.runner import CAUGHT, Tree, attempt, run

ROOT = Path(__file__).parents[2]
QUICK = ("a set clock ends leases", "frames of an earlier reign follow those of a later")


def test_there_are_many_and_no_two_are_the_same() -> None:
    assert len(MUTANTS) >= 60
    assert len({mutant.name for mutant in MUTANTS}) == len({(m.file, m.edits) for m in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_still_fits_the_code(mutant: Mutant) -> None:
    text = (ROOT / mutant.file).read_text()
    for old, new in mutant.edits:
        assert text.count(old) == 1 and old != new
    for word in mutant.test.split():
        if word.startswith("test_") and ".py" in word:
            file, _, name = word.partition("::")
            assert not name or f"def {name}(" in (ROOT / "tests" / "store" / file).read_text()


def test_some_are_caught(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "tree")
    for mutant in (mutant for mutant in MUTANTS if mutant.name in QUICK):
        result = attempt(tree, mutant)
        assert result.verdict == CAUGHT, str(result)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_all_are_caught(capsys: pytest.CaptureFixture[str]) -> None:
    results = []
    for result in run(MUTANTS):
        results.append(result)
        with capsys.disabled():
            print(f"\n{result}", end="", flush=True)
    assert [str(result) for result in results if result.verdict != CAUGHT] == []
