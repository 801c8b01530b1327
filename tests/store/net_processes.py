"""Processes of a store across machines, as the tests start and kill them."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Start = Callable[..., subprocess.Popen[str]]


@contextmanager
def processes() -> Iterator[Start]:
    """A function that starts ``statepool store …`` and waits until it is ready; all are killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "statepool.cli", "store", *map(str, arguments)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(child)
        assert child.stdout is not None
        said = child.stdout.readline()
        assert said.startswith(("serving", "mirroring", "witness")), said + child.stdout.read()
        return child

    try:
        yield start
    finally:
        for child in started:
            kill(child)


def kill(child: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
    """Send a signal and wait for the end."""
    if child.poll() is None:
        child.send_signal(number)
    child.wait(30)
    if child.stdout is not None:
        child.stdout.close()


def tcp() -> str:
    """An address nobody listens at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{taken.getsockname()[1]}"


def unix(folder: Path, name: str) -> str:
    """A socket in a folder."""
    return f"unix://{folder / name}"
