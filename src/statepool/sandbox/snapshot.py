"""A kept moment of a sandbox, and the sandboxes that begin there."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from typing import TYPE_CHECKING

from statepool.core.errors import InvalidRequest, Overloaded
from statepool.sandbox.channel import Channel, Closed, pair
from statepool.sandbox.context import Context
from statepool.sandbox.errors import NotQuiescent, SandboxGone
from statepool.sandbox.link import Link

if TYPE_CHECKING:
    from statepool.sandbox.sandbox import Sandbox

__all__ = ["Snapshot"]

_BATCH = 16
"""Root directories at once: so many descriptors fit in a message."""


class Snapshot(contextlib.AbstractContextManager["Snapshot"]):
    """A moment of a sandbox: its kernel's memory in a frozen process, its files as a sealed layer. Nothing is copied.

    It outlives its sandbox, and holds the slot until it is closed.
    """

    def __init__(self, sandbox: Sandbox, channel: Channel, root: int, pid: int) -> None:
        self.id = secrets.token_hex(8)
        self.source, self.template = sandbox.id, sandbox.template
        self.root, self.pid = root, pid
        self._lease, self._channel = sandbox.lease, channel
        self._settings = (sandbox.env, sandbox.seed, sandbox.timeout)
        self._shell = type(sandbox)._shell
        self._lock = threading.Lock()
        self._open = True
        self._lease.hold()
        self._lease.frozen.add(pid)

    def fork(self, count: int = 1) -> list[Sandbox]:
        """``count`` new sandboxes that begin here, with random numbers of their own. They share the slot and its
        limits.
        """
        if count < 1:
            raise InvalidRequest(f"count: must be positive, got {count}", param="count")
        env, seed, timeout = self._settings
        made = []
        for _ in range(count):
            self._lease.hold()
            made.append(self._shell(self._lease, self.template, env, seed, timeout))
        envs = [{"STATEPOOL_SANDBOX": kid.id} for kid in made]
        try:
            roots = self.grow([kid.context for kid in made], reseed=True, seed=seed, envs=envs)
        except BaseException:
            for kid in made:
                kid.set_timeout(None)
                self._lease.let_go()
            raise
        for kid, root in zip(made, roots, strict=True):
            kid._root = root
        return made

    def digest(self) -> str | None:
        """Of the names of that moment, to compare with those of a kernel; None once its process has ended."""
        with self._lock:
            if not self._open:
                return None
            ours, theirs = pair()
            try:
                self._channel.instruct({"op": "digest"}, [theirs.fileno()])
                theirs.close()
                if self._channel.receive()[0]["op"] != "grown":  # no further process
                    return None
                return str(ours.receive()[0]["digest"])
            except Closed:
                return None
            finally:
                theirs.close()
                ours.close()

    def close(self) -> None:
        """Give the moment up; what began from it lives on."""
        with self._lock:
            if not self._open:
                return
            self._open = False
        self._channel.close()
        self._lease.frozen.discard(self.pid)
        self._lease.drop(self.root)  # its layer stays while others lie on it
        self._lease.let_go()

    __del__ = close

    def __exit__(self, *_: object) -> None:
        self.close()

    def grow(self, contexts: list[Context], *, reseed: bool, seed: int | None, envs: list[dict[str, str]]) -> list[int]:
        """A kernel for each context that begins here; answers the numbers of their root directories."""
        with self._lock:
            if not self._open:
                raise SandboxGone("the snapshot was closed", param="snapshot")
            batches = [min(_BATCH, len(contexts) - start) for start in range(0, len(contexts), _BATCH)]
            answers = [self._lease.roots(self.root, count) for count in batches]  # made while kernels are forked
            numbers: list[int] = []
            links: list[Link] = []
            awaited = 0
            try:
                for env in envs:
                    link, ends = Link.make()
                    links.append(link)
                    with ends:
                        order = {"op": "grow", "reseed": reseed, "seed": seed, "env": env}
                        self._channel.instruct(order, ends.fds)
                    awaited += 1
                for link in links:
                    awaited -= 1
                    said, _ = self._channel.receive()
                    if said["op"] != "grown":
                        raise Overloaded(f"snapshot: no further process: {os.strerror(said['errno'])}")
                    link.pid = int(said["pid"])
                while answers:
                    roots = answers.pop(0)()
                    try:
                        for number, root in roots:
                            links[len(numbers)].channel.instruct({}, [root])
                            numbers.append(number)
                    finally:
                        for _, root in roots:
                            os.close(root)
            except BaseException as error:
                for link in links:
                    link.close()
                with contextlib.suppress(Closed):
                    for _ in range(awaited):  # what the next who asks must not take for his
                        self._channel.receive()
                for answer in answers:
                    self._lease.scrap(answer)
                if isinstance(error, Closed):
                    raise SandboxGone("the snapshot's process has ended", param="snapshot") from None
                raise
        for context, link in zip(contexts, links, strict=True):
            context.attach(link, begin=False)
        for context in contexts:
            ready = context.receive(30.0)
            if ready.get("error"):
                raise NotQuiescent(f"snapshot: the kernel cannot go on from it: {ready['error']}")
        return numbers
