"""Two engines in turn: each in a process of its own, stopped while the other one runs."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.machine import favour

WORKERS = Path(__file__).with_name("workers")
ROOT = WORKERS.parent.parent


class WorkerError(Exception):
    """An engine could not load or run; the text says why."""


class Parked:
    """A process group that is stopped except during its turns, so that spinning threads cost nobody anything."""

    def __init__(self, process: subprocess.Popen[Any]) -> None:
        self.process = process
        favour(process.pid)

    def park(self) -> None:
        """Stop every thread of the group."""
        self._signal(signal.SIGSTOP)

    def wake(self) -> None:
        """Let the group go on."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End the group at once."""
        self._signal(signal.SIGKILL)
        self.process.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)


class Worker(Parked):
    """A driver of ``bench/workers`` under the interpreter of its engine."""

    def __init__(self, name: str, python: Path, script: str, log: Path, threads: int) -> None:
        self.name = name
        self.loaded: dict[str, Any] = {}
        self._log = log.open("ab")
        path = os.pathsep.join([str(ROOT / "src"), str(WORKERS), str(ROOT)])
        env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}
        super().__init__(
            subprocess.Popen(
                [str(python), str(WORKERS / script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=env,
                start_new_session=True,
                cwd=ROOT,
            )
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.wake()
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout, self._log):
            with suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()

    def load(self, **options: Any) -> None:
        """Load a model and park."""
        self.loaded = self._ask({"do": "load"} | options)
        self.park()

    def turn(self, case: dict[str, Any]) -> float:
        """Tokens per second of one run of ``case``; parked before and after."""
        answer = self.run(case)
        return float(answer["tokens"] / answer["seconds"])

    def run(self, case: dict[str, Any]) -> dict[str, Any]:
        """All that the engine says about one run of ``case``; parked before and after."""
        self.wake()
        answer = self._ask({"do": "run"} | case)
        self.park()
        return answer

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            raise WorkerError(f"{self.name} ended with code {self.process.wait()}; see {self._log.name}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.name}: {answer['error']}")
        return answer


@dataclass(frozen=True, slots=True)
class Result:
    """Medians over the pairs of a duel."""

    ours: float
    theirs: float | None
    ratio: float | None
    spread: float
    """Largest over smallest ratio, minus one."""


def duel(ours: Worker, peer: Worker | None, case: dict[str, Any], pairs: int, seed: int = 1) -> Result:
    """Run ``case`` in turn (ours, peer, ours, peer, …) after one warm turn each; every pair has fresh prompts."""
    sides = [ours] if peer is None else [ours, peer]
    speeds: list[list[float]] = [[] for _ in sides]
    for turn in range(pairs + 1):
        for side, found in zip(sides, speeds, strict=True):
            speed = side.turn(case | {"seed": seed * 1000 + turn})
            if turn:
                found.append(speed)
        if sys.stderr.isatty():
            print(f"\r  {turn}/{pairs}", end="", file=sys.stderr)
    return _summary(speeds)


def _summary(speeds: Sequence[Sequence[float]]) -> Result:
    own = statistics.median(speeds[0])
    if len(speeds) == 1:
        return Result(own, None, None, max(speeds[0]) / min(speeds[0]) - 1)
    ratios = [a / b for a, b in zip(speeds[0], speeds[1], strict=True)]
    spread = max(ratios) / min(ratios) - 1
    return Result(own, statistics.median(speeds[1]), statistics.median(ratios), spread)
