"""The child side of a benchmark duel: JSON lines in, JSON lines out. Standard library only.

A driver gives ``serve`` an object with ``load(**options) -> dict`` and ``run(**case) -> dict``. Whatever the
engine prints goes to standard error; standard output carries answers only.
"""

from __future__ import annotations

import json
import os
import random
import socket
import sys
import traceback
from typing import Any, Protocol


class Driver(Protocol):
    """One engine under measurement."""

    def load(self, **options: Any) -> dict[str, Any]:
        """Make the model ready; answers versions and settings worth printing."""

    def run(self, **case: Any) -> dict[str, Any]:
        """Run one case; answers at least ``seconds`` and ``tokens`` of the timed part."""


def serve(driver: Driver) -> None:
    """Answer requests until ``quit`` or end of file. A failure is an answer, never a crash."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        action = request.pop("do")
        if action == "quit":
            break
        try:
            reply = driver.load(**request) if action == "load" else driver.run(**request)
        except Exception as error:  # the parent prints it and gives the row up
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(reply) + "\n")
    answers.close()
    # Native thread pools of some engines hang in their own exit handlers.
    os._exit(0)


def free_port() -> int:
    """A port of this machine that nobody has at this moment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def prompts(batch: int, length: int, seed: int, vocab: int = 8000) -> list[list[int]]:
    """Random prompts of ids 10..vocab-1, the same for every engine given the same seed."""
    draw = random.Random(seed)
    return [[draw.randrange(10, vocab) for _ in range(length)] for _ in range(batch)]
