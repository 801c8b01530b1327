"""The duel protocol against a scripted engine: fair turns, stopped sides, failures as notes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from bench.duel import Worker, WorkerError, duel
from bench.workers.turns import prompts

SCRIPT = """
from turns import prompts, serve

class Scripted:
    def load(self, speed):
        print("noise on standard output")
        self.speed = speed
        return {"speed": speed}

    def run(self, kind, seed):
        if kind == "fail":
            raise ValueError("no such case")
        if kind == "die":
            raise SystemExit(3)
        return {"seconds": 2.0, "tokens": 2 * self.speed * (seed % 1000)}

serve(Scripted())
"""


@pytest.fixture
def worker(tmp_path: Path) -> Callable[[str], Worker]:
    script = tmp_path / "scripted.py"
    script.write_text(SCRIPT)
    return lambda name: Worker(name, Path(sys.executable), str(script), tmp_path / f"{name}.log", 1)


def _stops(worker: Worker) -> bool:
    """Whether the process is stopped; the kernel takes a moment after the signal."""
    stat = Path(f"/proc/{worker.process.pid}/stat")
    end = time.monotonic() + 10
    while stat.read_text().rpartition(")")[2].split()[0] != "T":
        if time.monotonic() > end:
            return False
        time.sleep(0.001)
    return True


def test_ratio_is_the_median_over_pairs_and_sides_wait_stopped(worker: Callable[[str], Worker]) -> None:
    with worker("ours") as ours, worker("peer") as peer:
        ours.load(speed=30)
        peer.load(speed=10)
        assert _stops(ours)
        assert _stops(peer)
        result = duel(ours, peer, {"kind": "decode"}, pairs=3)
        assert result.ratio == 3.0
        assert result.spread == 0.0
        assert (result.ours, result.theirs) == (60.0, 20.0), (
            "the median of turns 1, 2, 3; the warm turn 0 is not counted"
        )
        assert _stops(ours)
        assert _stops(peer)


def test_a_duel_without_peer_has_no_ratio(worker: Callable[[str], Worker]) -> None:
    with worker("ours") as ours:
        ours.load(speed=1)
        result = duel(ours, None, {"kind": "decode"}, pairs=2)
        assert (result.ratio, result.theirs) == (None, None)


def test_a_failure_names_its_side_and_reason(worker: Callable[[str], Worker]) -> None:
    with worker("peer") as peer:
        peer.load(speed=1)
        with pytest.raises(WorkerError, match="peer: ValueError: no such case"):
            peer.turn({"kind": "fail", "seed": 1})
        assert peer.turn({"kind": "decode", "seed": 7}) == 7.0, "the worker lives on"
        with pytest.raises(WorkerError, match="peer ended with code 3"):
            peer.turn({"kind": "die", "seed": 1})


def test_prompts_depend_on_the_seed_only() -> None:
    assert prompts(2, 5, seed=1) == prompts(2, 5, seed=1) != prompts(2, 5, seed=2)
    assert all(10 <= token < 8000 for row in prompts(4, 100, 3) for token in row)
