"""The manager's side of slots and zygotes: starting them, asking them, hearing when they end."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from statepool.sandbox.cgroup import Cgroup, Usage
from statepool.sandbox.channel import Channel, Closed, pair
from statepool.sandbox.errors import SandboxError, SandboxGone, SlotFailed
from statepool.sandbox.link import Link
from statepool.sandbox.template import Limits, Template, skeleton

__all__ = ["Reactor", "Slot", "Zygote"]

_log = logging.getLogger(__name__)
_ANSWER_SECONDS = 30.0
_START_SECONDS = 120.0

Reply = tuple[dict[str, Any], list[int]]


class Reactor:
    """One thread that reads what slots say: answers to questions, and news of processes that ended."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake, self._wake_in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._loop, name="statepool-sandbox", daemon=True)
        self._closing = False
        self._lock = threading.Lock()
        self._gone: list[Slot] = []
        self._thread.start()

    def add(self, slot: Slot) -> None:
        """Listen to a slot."""
        self._selector.register(slot.channel, selectors.EVENT_READ, slot)
        self._nudge()

    def remove(self, slot: Slot) -> None:
        """Listen no longer; the slot's channel is closed by the reactor itself."""
        with self._lock:
            self._gone.append(slot)
        self._nudge()

    def close(self) -> None:
        """End the thread."""
        self._closing = True
        self._nudge()
        self._thread.join(5)
        self._forget_gone()  # the loop may have ended before it came to them
        self._selector.close()
        for fd in (self._wake, self._wake_in):
            os.close(fd)

    def _nudge(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._wake_in, b".")

    def _loop(self) -> None:
        while not self._closing:
            for key, _ in self._selector.select():
                if key.data is None:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake, 4096)
                    continue
                slot: Slot = key.data
                try:
                    slot.hear(*slot.channel.receive(rights=True))
                except Closed:
                    self._forget(slot)
            self._forget_gone()

    def _forget_gone(self) -> None:
        with self._lock:
            gone, self._gone = self._gone, []
        for slot in gone:
            self._forget(slot)

    def _forget(self, slot: Slot) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(slot.channel)
        slot.channel.close()
        slot.lost()


class Zygote:
    """The process that holds a template's memory. Started when first needed; started again if it dies."""

    def __init__(self, template: Template, folder: Path, *, userns: bool, born: Callable[[int], None]) -> None:
        """``born`` hears the process id before the process does anything."""
        self.template = template
        self.folder = folder / f"template-{template.name}"
        self.userns = userns
        self._born = born
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Of the running process."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start the process unless it runs.

        Raises:
            SlotFailed: the preload failed; the message has the reason.
        """
        with self._lock:
            if self._closed:
                raise SlotFailed(f"template {self.template.name}: it is closed")
            if self._process is None or self._process.poll() is not None:
                self._start()

    def fork(self, control: Channel, cgroups: Iterable[Path]) -> None:
        """Ask for a slot in these cgroups; its first words come on the other end of ``control``."""
        template, limits = self.template, self.template.limits
        order: list[str | int] = [int(self.userns), limits.files_bytes, limits.inodes]
        order += [str(self.folder / "base"), str(self.folder / "skeleton"), len(template.layers)]
        order += [*template.layers, *template.sources()]
        with contextlib.ExitStack() as stack:
            joins = [stack.enter_context((path / "cgroup.procs").open("wb", 0)).fileno() for path in cgroups]
            self._ask(order, [control.fileno(), *joins])

    def _ask(self, order: list[str | int], fds: list[int]) -> None:
        for _ in range(2):
            self.start()
            with self._lock, contextlib.suppress(Closed):
                assert self._channel is not None
                self._channel.order(order, fds)
                return
            with self._lock:
                self._end()
        raise SlotFailed(f"template {self.template.name}: its zygote ends as soon as it is asked for a slot")

    def close(self) -> None:
        """End the process for good; its slots live on."""
        with self._lock:
            self._closed = True
            self._end()

    def _end(self) -> None:
        if self._channel is not None:
            self._channel.close()
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(2)
            self._process.kill()
            self._process.wait()
        self._process = self._channel = None

    def _start(self) -> None:
        if not (self.folder / "skeleton").exists():
            (self.folder / "base").mkdir(parents=True, exist_ok=True)
            made = self.folder / "unfinished"
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir()
            skeleton(self.template, made)
            made.rename(self.folder / "skeleton")
        self._end()
        self._channel, theirs = pair()
        try:
            with contextlib.closing(theirs):
                self._process = subprocess.Popen(
                    # None of the manager's variables goes along; the fixed hash seed gives sets one order everywhere.
                    [sys.executable, "-m", "statepool.sandbox.inside.zygote", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    env=self.template.variables()
                    | {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONHASHSEED": "0"},
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            self._born(self._process.pid)
            self._channel.send(self.template.spec())
            self._channel.socket.settimeout(_START_SECONDS)
            hello, _ = self._channel.receive()
            self._channel.socket.settimeout(None)
        except OSError as error:
            hello = {"op": "failed", "error": str(error)}
        if hello["op"] != "ready":
            self._end()
            raise SlotFailed(f"template {self.template.name}: {hello['error']}")


class Slot:
    """One slot: namespaces, cgroups, and the PID 1 in them."""

    def __init__(self, name: str, zygote: Zygote, cgroup: Cgroup, reactor: Reactor) -> None:
        self.name, self.zygote, self.cgroup = name, zygote, cgroup
        self.pid = 0
        self.own: set[int] = set()
        """PID 1: what a clean slot's cgroups hold."""
        self._pidfd = -1
        self.uses = 0
        """Tenants that it has had."""
        self.taken = 0.0
        """When the last of them came."""
        self.held = 0.0
        """Seconds until he gave it back."""
        self.spent = Usage(0, 0, 0, 0.0, 0)
        """By the tenants before this one."""
        self.on_exit: Callable[[int, int], None] | None = None
        """Called from the reactor with a process id inside and an exit code."""
        self.on_lost: Callable[[Slot], None] | None = None
        self._reactor = reactor
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[Reply]] = {}
        self._next = 0
        self.alive = False
        self.tenant: tuple[int, Limits, Link] | None = None
        """User id, limits and kernel that wait for the next tenant."""
        self._last_exit = (0, 0)
        self.channel, self._theirs = pair()

    def start(self, born: Callable[[int], None]) -> None:
        """Fork from the zygote and wait until it is ready. ``born`` hears the host's process id first.

        Raises:
            SlotFailed: with what went wrong inside.
        """
        with contextlib.closing(self._theirs):
            self.zygote.fork(self._theirs, self.cgroup.paths.values())
        self.channel.socket.settimeout(_ANSWER_SECONDS)
        try:
            ready = False
            while not (ready and self.pid):  # two processes speak: who forked PID 1, and PID 1
                news, _ = self.channel.receive()
                if news["op"] == "born":
                    self.pid = news["pid"]
                    self.own = {self.pid}
                    self._pidfd = os.pidfd_open(self.pid)
                    born(self.pid)
                elif news["op"] == "ready":
                    ready = True
                else:
                    raise SlotFailed(f"slot {self.name}: {news['error']}")
        except Closed as error:
            raise SlotFailed(f"slot {self.name}: {error}") from None
        self.channel.socket.settimeout(None)
        self.alive = True
        self._reactor.add(self)

    def park(self, uid: int, limits: Limits, memory_rlimit: bool) -> None:
        """Make a kernel wait for a tenant of this user id: confined already, with nothing of the tenant's yet."""
        link, ends = Link.make()
        bounds = _rlimits(limits, memory_rlimit)
        self.tenant = (uid, limits, link)  # before it can fail: who ends the slot closes the link
        with ends:
            link.pid = self.post("start", uid, limits.files_bytes, limits.inodes, *bounds, fds=ends.fds)

    def post(self, what: str, *fields: str | int, fds: Iterable[int] = ()) -> Future[Reply]:
        """Send a request; the future has the answer and its descriptors, which the caller closes.

        Raises:
            SandboxGone: the slot has ended.
            ValueError: a field holds a zero byte, or what UTF-8 cannot write.
        """
        future: Future[Reply] = Future()
        with self._lock:
            if not self.alive:
                raise SandboxGone("the sandbox has ended")
            self._next += 1
            self._waiting[self._next] = future
            try:
                self.channel.order((self._next, what, *fields), fds)
            except (Closed, ValueError) as error:
                del self._waiting[self._next]
                if isinstance(error, ValueError):
                    raise
                raise SandboxGone("the sandbox has ended") from None
        return future

    def later(self, what: str, *fields: str | int, fds: Iterable[int] = ()) -> Callable[[], Reply]:
        """Send a request; answers what waits for its answer.

        Raises:
            SandboxGone: the slot has ended.
            SlotFailed: no answer in time.
            OSError: what the request met inside.
        """
        future = self.post(what, *fields, fds=fds)

        def wait() -> Reply:
            try:
                answer, got = future.result(_ANSWER_SECONDS)
            except TimeoutError:
                raise SlotFailed(f"slot {self.name} gave no answer to {what} within {_ANSWER_SECONDS:g} s") from None
            if "error" in answer:
                raise OSError(answer.get("errno", 0), answer["error"])
            return answer, got

        return wait

    def ask(self, what: str, *fields: str | int, fds: Iterable[int] = ()) -> Reply:
        """Send a request and wait for its answer; errors are those of ``later``."""
        return self.later(what, *fields, fds=fds)()

    def signal(self, pid: int, number: int, group: bool = False) -> bool:
        """Send a signal to a process inside; answers whether it was there."""
        answer, _ = self.ask("signal", pid, int(group), number)
        return bool(answer["sent"])

    def hear(self, message: dict[str, Any], fds: list[int]) -> None:
        """From the reactor: one message of the slot."""
        if "re" in message:
            with self._lock:
                future = self._waiting.pop(message["re"], None)
            if future is None or not future.set_running_or_notify_cancel():
                for fd in fds:
                    os.close(fd)
            else:
                future.set_result((message, fds))
        elif message.get("op") == "exit":
            self._last_exit = (message["pid"], message["code"])
            if self.on_exit is not None:
                self.on_exit(message["pid"], message["code"])
        elif message.get("op") == "failed":
            _log.warning("slot %s has failed: %s", self.name, message["error"])

    def lost(self) -> None:
        """From the reactor: the slot's channel has closed."""
        with self._lock:
            self.alive = False
            waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if future.set_running_or_notify_cancel():
                future.set_exception(SandboxGone("the sandbox has ended"))
        if self.on_lost is not None:
            self.on_lost(self)

    def why_ended(self, link: Link) -> str:
        """What is known of the end of a kernel that waited here."""
        try:
            pid = link.process()
        except (SandboxError, OSError) as error:
            return str(error)
        words = link.last_words()
        if words is None and self._last_exit[0] == pid:
            words = f"exit code {self._last_exit[1]}"
        return words or "it said nothing"

    def reset(self, network: bool) -> str | None:
        """Make it clean for the next tenant; answers what is wrong, if anything is. A new network where ``network``."""
        self._forget_tenant()
        try:
            answer, _ = self.ask("reset", int(network))
        except (OSError, SandboxGone, SlotFailed) as error:
            return str(error)
        if "problem" in answer:
            return str(answer["problem"])
        self._last_exit = (0, 0)
        self.spent = self.cgroup.usage(growing=True)
        if self.cgroup.paths and (pids := self.cgroup.members()) != self.own:
            return f"its cgroup holds {sorted(pids)}, and should {sorted(self.own)}"
        return None

    def destroy(self) -> bool:
        """End everything in it; answers whether its cgroups are gone too."""
        self.alive = False
        self._theirs.close()
        self._forget_tenant()
        with contextlib.suppress(OSError):
            self.channel.socket.shutdown(socket.SHUT_RDWR)
        self._reactor.remove(self)
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            os.close(self._pidfd)
            self._pidfd = -1
        self.cgroup.kill()
        return self.cgroup.remove()

    def _forget_tenant(self) -> None:
        if self.tenant is not None:
            self.tenant[2].close()
            self.tenant = None


def _rlimits(limits: Limits, memory: bool) -> list[int]:
    """Pairs of resource and value, for every process of a tenant."""
    wanted = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_NPROC: limits.processes,
        resource.RLIMIT_MEMLOCK: 1 << 16,
        resource.RLIMIT_MSGQUEUE: 1 << 20,
        resource.RLIMIT_RTPRIO: 0,
    }
    if memory:
        wanted[resource.RLIMIT_DATA] = limits.memory_bytes
    return [number for pair in wanted.items() for number in pair]
