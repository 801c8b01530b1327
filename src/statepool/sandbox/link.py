"""The manager's connection to one kernel: a socket for messages, two pipes for what it prints."""

from __future__ import annotations

import os
from concurrent.futures import Future
from typing import Any

from statepool.sandbox.channel import Channel, Closed, pair
from statepool.sandbox.errors import SandboxError

__all__ = ["Ends", "Link", "close", "pipes"]


def pipes(count: int) -> list[tuple[int, int]]:
    """So many pipes, or none and an OSError: ends to read from, ends to write to."""
    made: list[tuple[int, int]] = []
    try:
        for _ in range(count):
            made.append(os.pipe2(os.O_CLOEXEC))  # noqa: PERF401  # those made before one fails are closed
    except OSError:
        close(made)
        raise
    return made


def close(made: list[tuple[int, int]]) -> None:
    """Close both ends of each."""
    for fd in (fd for both in made for fd in both):
        os.close(fd)


class Ends:
    """The kernel's ends, to be sent and then closed here."""

    def __init__(self, channel: Channel, out: int, err: int) -> None:
        self._channel = channel
        self.fds = [channel.fileno(), out, err]

    def __enter__(self) -> Ends:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        for fd in self.fds[1:]:
            os.close(fd)


class Link:
    """The manager's ends."""

    def __init__(self, channel: Channel, out: int, err: int) -> None:
        self.channel = channel
        self.pipes = (out, err)
        self.pid: int | Future[tuple[dict[str, Any], list[int]]] = 0
        """Of the kernel, inside; or the answer of the slot that will have it."""

    @classmethod
    def make(cls) -> tuple[Link, Ends]:
        """A new connection: ours, theirs."""
        (out, out_in), (err, err_in) = made = pipes(2)
        try:
            ours, theirs = pair()
        except OSError:
            close(made)
            raise
        return cls(ours, out, err), Ends(theirs, out_in, err_in)

    def process(self) -> int:
        """Process id of the kernel, inside.

        Raises:
            SandboxError: it was never started.
        """
        if not isinstance(self.pid, int):
            answer, _ = self.pid.result(30)
            if "error" in answer:
                raise SandboxError(f"the kernel did not start: {answer['error']}")
            self.pid = int(answer["pid"])
        return self.pid

    def last_words(self) -> str | None:
        """What a kernel that has ended said last, if anything."""
        self.channel.socket.settimeout(0.1)
        try:
            return str(self.channel.receive()[0]["error"])
        except (Closed, KeyError):
            return None

    def close(self) -> None:
        """Close our ends; the kernel ends with them."""
        self.channel.close()
        for fd in self.pipes:
            os.close(fd)
