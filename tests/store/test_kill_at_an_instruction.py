"""A process is killed behind any machine instruction of a transaction: it counts wholly or not at all."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.store.test_kill import verify

import statepool.store

HERE = Path(__file__).parent


class Stepper:
    """Has children do one transaction each, and die in it."""

    def __init__(self, folder: Path) -> None:
        self.path, self.last = folder / "s", 0
        command = [sys.executable, str(HERE / "step_child.py")]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def step(self, most: int | None) -> int:
        """Instructions that the child was given; then its store is looked at, with the heap that it left."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"path": str(self.path), "step": most}) + "\n")
        self.process.stdin.flush()
        given, killed = json.loads(self.process.stdout.readline())
        if not killed:
            pytest.skip("this machine does not let a process step through another")
        with statepool.store.open(self.path) as store:
            found = verify(store, self.last)
        assert found in (self.last, self.last + 1)
        assert most is not None or found == self.last + 1, "its transaction was over"
        self.last = found
        return given

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()


@pytest.fixture
def stepper(tmp_path: Path) -> Iterator[Stepper]:
    it = Stepper(tmp_path)
    yield it
    it.close()


def kill_often(stepper: Stepper, kills: int) -> None:
    length = min(stepper.step(None) for _ in range(2))
    assert length > 5_000
    draw, whole = random.Random(kills), 0
    for _ in range(kills):
        before = stepper.last
        stepper.step(draw.randrange(length))
        whole += stepper.last > before
    assert 0 < whole < kills, "some were killed before and some after the instruction that counts"


def test_killed_at_some_instructions(stepper: Stepper) -> None:
    kill_often(stepper, 12)


@pytest.mark.slow
def test_killed_at_more_instructions(stepper: Stepper) -> None:
    kill_often(stepper, 80)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_many_instructions(stepper: Stepper) -> None:
    kill_often(stepper, 400)
