"""The sandbox: cells, commands, files, snapshots and forks of one tenant."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import secrets
import shlex
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from statepool.core.config import parse_size
from statepool.core.errors import InvalidRequest, StatepoolError, Unavailable
from statepool.sandbox.cgroup import Usage
from statepool.sandbox.channel import Closed, pair
from statepool.sandbox.context import Context
from statepool.sandbox.errors import NotQuiescent, SandboxError, SandboxGone, SlotFailed
from statepool.sandbox.execution import Execution, Show
from statepool.sandbox.files import Files
from statepool.sandbox.lease import Lease
from statepool.sandbox.link import Link
from statepool.sandbox.process import Commands
from statepool.sandbox.snapshot import Snapshot
from statepool.sandbox.template import HOME

if TYPE_CHECKING:
    from statepool.sandbox.memory import Remote
    from statepool.sandbox.net import Proxy
    from statepool.sandbox.pool import Pool

__all__ = ["Context", "Sandbox", "Snapshot"]

_log = logging.getLogger(__name__)
_ATTEMPTS = 3
_T = TypeVar("_T")
_default: Pool | None = None
_default_lock = threading.Lock()


class Sandbox(contextlib.AbstractContextManager["Sandbox"]):
    """One tenant's place to run code.

    Args:
        template: kind of sandbox.
        pool: where slots come from; the pool of this process by default.
        timeout: seconds until it is ended by itself; None: never.
        memory: most memory, such as "512MiB"; the template's by default.
        cpus: most cores; the template's by default.
        env: variables for cells and commands.
        domain: whom it belongs to; a slot crosses domains only with a new network.
        seed: of ``random`` and ``numpy.random``; None draws one.
        network: hosts it may reach through a proxy (``"*.example.com"``); none by default.

    Raises:
        InvalidRequest: an argument is out of range.
        IsolationUnavailable: this host cannot isolate it.
        Overloaded: all slots are busy.
    """

    lease: Lease
    context: Context
    _proxy: Proxy | None
    kills: int
    """Processes that the kernel has ended for want of memory, as far as was told."""

    def __init__(
        self,
        template: str = "py",
        *,
        pool: Pool | None = None,
        timeout: float | None = None,
        memory: str | int | None = None,
        cpus: float | None = None,
        env: dict[str, str] | None = None,
        domain: str | None = None,
        seed: int | None = None,
        network: tuple[str, ...] | list[str] = (),
    ) -> None:
        pool = pool or _default_pool()
        for attempt in range(_ATTEMPTS):
            slot = pool.acquire(template, domain)
            assert slot.tenant is not None
            uid, kind = slot.tenant[0], slot.zygote.template
            try:
                limits = kind.limited(memory_bytes=None if memory is None else parse_size(memory), cpus=cpus)
                if limits != kind.limits:
                    slot.cgroup.limit(limits.memory_bytes, limits.processes, limits.cpus)
                    if not pool.limits_by_cgroup:
                        pool.restart(slot, limits)
                link, slot.tenant = slot.tenant[2], None
                self._begin(Lease(pool, slot, uid, domain, limits), template, dict(env or {}), seed, timeout)
                self.context.attach(link)
                break
            except Closed:
                why = slot.why_ended(link)
                _log.warning("a kernel that waited had ended (%s); a new slot is made", why)
                self.context.drop()
                pool.discard(slot, "its kernel had ended")
                pool.give_uid(uid)
                pool.end_waiting(template)  # what ended this one may have ended all that waited with it
                if attempt == _ATTEMPTS - 1:
                    raise SlotFailed(f"template {template}: kernels end before they are used: {why}") from None
            except (StatepoolError, OSError):
                pool.release(slot, uid, domain)
                raise
        if network:
            from statepool.sandbox.net import grant

            try:
                self._proxy = grant(self, network)
            except BaseException:
                self.close()
                raise

    create = classmethod(lambda cls, *args, **kwargs: cls(*args, **kwargs))

    @classmethod
    def _shell(
        cls, lease: Lease, template: str, env: dict[str, str], seed: int | None, timeout: float | None
    ) -> Sandbox:
        """A sandbox in a slot that is held already."""
        made = cls.__new__(cls)
        made._begin(lease, template, dict(env), seed, timeout)
        return made

    def _begin(self, lease: Lease, template: str, env: dict[str, str], seed: int | None, timeout: float | None) -> None:
        self.id = secrets.token_hex(10)
        self.template, self.env, self.seed = template, env, seed
        self.lease, self.limits = lease, lease.limits
        self.started = time.time()
        self._root = 0
        self._since: tuple[str, int] | None = None
        """Id of the moment kept or gone back to last, and the kernel that has gone on from it."""
        self.kills = 0
        self._proxy = None
        self.remotes: list[Remote] = []
        self._open, self.paused = True, False
        self._files: tuple[int, Files, int] | None = None
        self.contexts: dict[str, Context] = {}
        self.context = Context(self, HOME, seed)
        self.contexts = {self.context.id: self.context}
        begin = lease.slot.zygote.template.variables() | self.variables
        self.commands = Commands(lease, lambda: self._root, begin, lease.limits.output_bytes)
        self.timeout: float | None = None
        self.set_timeout(timeout)

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Sandbox {self.id} of {self.template}>"

    @property
    def variables(self) -> dict[str, str]:
        """What it adds to its template's variables."""
        return self.env | {"STATEPOOL_SANDBOX": self.id}

    def restart_with_memory(self, length: int, parts: list[list[Any]]) -> tuple[int, int]:
        """A new kernel with memory whose pages the caller fetches: the descriptor it is asked on, and the address.

        Raises:
            Unavailable: this host has no userfaultfd, or not for this user.
        """
        self._usable()
        self.context.kill()
        try:
            device = os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise Unavailable(f"pages: /dev/userfaultfd: {error.strerror}", param="pages") from None
        link = self.start_kernel()
        try:
            link.channel.instruct({"op": "region", "length": length, "parts": parts}, [device])
            news, fds = link.channel.receive(rights=True)
        except Closed:
            news, fds = {}, []
        finally:
            os.close(device)
        if news.get("op") != "memory" or not fds:
            link.close()
            raise Unavailable(
                f"pages: the kernel got no memory of this kind: {news.get('error', 'it ended')}", param="pages"
            )
        self.context.attach(link)
        return fds[0], int(news["address"])

    def add_variables(self, variables: dict[str, str]) -> None:
        """More variables for later cells and commands."""
        self.env |= variables
        self.commands.env |= variables
        for context in self.contexts.values():
            context.tell(variables)

    @property
    def files(self) -> Files:
        """The sandbox's files."""
        self._usable()
        if self._files is None or self._files[0] != self._root:
            self._forget_files()
            _, fds = self.lease.ask("root", self._root)
            owns = self.lease.pool.driver == "ns"
            self._files = (self._root, Files(fds[0], self.lease.uid, owns), fds[0])
        return self._files[1]

    def run_code(
        self,
        code: str,
        *,
        context: Context | None = None,
        timeout: float | None = 300.0,
        env: dict[str, str] | None = None,
        on_stdout: Show | None = None,
        on_stderr: Show | None = None,
    ) -> Execution:
        """Run a cell of Python; names stay for the next one. After ``timeout`` seconds it is interrupted, then
        killed.
        """
        self._usable()
        return (context or self.context).run(code, timeout, env, on_stdout, on_stderr)

    def install(self, *packages: str, timeout: float = 300.0) -> str:
        """Install packages from the wheels of its template, for cells and commands; answers what pip says.

        Raises:
            InvalidRequest: its template has no wheels, or a name is an option of pip.
            SandboxError: pip failed; the message ends with its reason.
        """
        if not self.lease.slot.zygote.template.wheels:
            raise InvalidRequest("install: the template has no wheels; name their folder in it", param="packages")
        if not packages or any(name.startswith("-") for name in packages):
            raise InvalidRequest(f"install: {packages!r} must be names of packages", param="packages")
        self._usable()
        line = shlex.join([sys.executable, "-m", "pip", "install", *packages])
        done = self.commands.run(line, timeout=timeout)
        if done.exit_code:
            raise SandboxError(f"install: {done.stderr.strip()[-500:]}")
        return done.stdout

    def create_context(self, cwd: str = HOME) -> Context:
        """A further kernel with names of its own."""
        self._usable()
        made = Context(self, cwd, self.seed)
        self.contexts[made.id] = made
        return made

    def snapshot(self) -> Snapshot:
        """Keep this moment: memory of the kernel and files. Some milliseconds; nothing is copied.

        Raises:
            NotQuiescent: a process, thread or socket would be lost; the message names it.
        """
        self._usable()
        others = [context for context in self.contexts.values() if context is not self.context and context.alive]
        if others:
            raise NotQuiescent(f"snapshot: the further kernel {others[0].id} would be lost; close it first")
        for remote in self.remotes:  # a fork would find zeros where pages are missing
            remote.bring_back()
        below = self._root
        with contextlib.ExitStack() as undo, self.context.lock:
            present, rooted = self.lease.others(below, self.context.pid), self.lease.roots(below, 1)
            undo.callback(self.lease.scrap, rooted)
            ours, theirs = pair()
            undo.callback(ours.close)
            with contextlib.closing(theirs):  # the kernel looks at itself, and forks, while the layer is made
                self.context.post({"op": "hold"}, (theirs.fileno(),))
            busy, wrong = _outcome(present)
            self.context.post({"alone": not busy and wrong is None})
            layers, worse = _outcome(rooted)
            answer = self.context.ask({}, tuple(root for _, root in layers))
            if error := wrong or worse:
                raise error
            for pid, line in busy:
                raise NotQuiescent(f"snapshot: the process {pid} ({line[:60]}), which still runs, would be lost")
            for obstacle in answer.get("obstacles", ()):
                raise NotQuiescent(f"snapshot: {obstacle} would be lost")
            if answer.get("error"):
                self.context.kill()
                raise NotQuiescent(f"snapshot: {answer['error']}; the kernel was ended, its state is lost")
            undo.pop_all()
        ((self._root, root),) = layers
        os.close(root)
        made = Snapshot(self, ours, below, int(answer["pid"]))
        self._since = (made.id, self.context.pid)
        return made

    def changed(self, since: Snapshot) -> bool:
        """Whether files or names are other than at the moment that was kept, or gone back to, last.

        A yes may be wrong: it is also the answer where a cell did what cannot be looked into (called a function of its
        own, changed a module). What was shown last (``_``) and the count of cells do not matter.

        Raises:
            InvalidRequest: ``since`` is another moment.
        """
        self._usable()
        if self._since is None or self._since[0] != since.id:
            raise InvalidRequest("since: must be the moment that was kept or gone back to last", param="since")
        others = any(context.alive for context in self.contexts.values() if context is not self.context)
        if others or self.remotes or not self.context.alive or self.context.pid != self._since[1]:
            return True
        if self.lease.touched(self._root, self.context.pid):
            return True
        looked = self.context.ask({"op": "look"})
        if looked["untouched"]:
            return False
        return looked["digest"] is None or looked["digest"] != since.digest()

    def checkpoint(self, last: Snapshot | None = None) -> Snapshot:
        """Keep this moment, unless nothing has changed since ``last``: then that is the answer."""
        if last is not None and self._since is not None and self._since[0] == last.id and not self.changed(last):
            return last
        return self.snapshot()

    def rollback(self, snapshot: Snapshot) -> None:
        """Go back to a moment of this sandbox or of one it was forked from; what came after is forgotten."""
        self._usable()
        if snapshot._lease is not self.lease:
            raise InvalidRequest("snapshot: it belongs to another sandbox", param="snapshot")
        self._forget_files()
        old, ended = self._root, [context.pid for context in self.contexts.values() if context.alive]
        (self._root,) = snapshot.grow([self.context], reseed=False, seed=None, envs=[{}])
        self._since = (snapshot.id, self.context.pid)
        for pid in ended:
            self.lease.kill(pid)
        for context in self.contexts.values():
            if context is not self.context:
                context.drop()
        self.contexts = {self.context.id: self.context}
        self.lease.drop(old)

    def fork(self, count: int = 1) -> list[Sandbox]:
        """``count`` sandboxes that go on from here, each with memory and files of its own. This one goes on too."""
        moment = self.snapshot()
        try:
            return moment.fork(count)
        finally:
            moment.close()

    def pause(self) -> None:
        """Stop all its processes; they keep their memory and use no CPU."""
        self._usable()
        self.paused = True
        if not self.lease.pause(True):
            raise SandboxError("pause: the processes did not stop in time, or this driver has no freezer")

    def resume(self) -> None:
        """Let a paused sandbox go on."""
        if self.paused:
            self.lease.pause(False)
            self.paused = False

    def set_timeout(self, seconds: float | None) -> None:
        """End it by itself after so many seconds from now; None: never."""
        if seconds is not None and seconds < 0:
            raise InvalidRequest(f"timeout: must not be negative, got {seconds}", param="timeout")
        self.timeout = seconds
        self.ends = None if seconds is None else time.time() + seconds
        self.lease.pool.at(id(self), None if seconds is None else time.monotonic() + seconds, self.close)

    def metrics(self) -> Usage:
        """What it has used, its forks included."""
        return self.lease.slot.cgroup.usage().since(self.lease.slot.spent)

    def connect(self, port: int, timeout: float = 5.0) -> socket.socket:
        """A connection to a port on the sandbox's loopback."""
        self._usable()
        try:
            _, fds = self.lease.ask("connect", port, int(1e3 * timeout))
        except OSError as error:
            raise SandboxGone(f"port: nothing answers on {port}: {error.strerror}", param="port") from None
        return socket.socket(fileno=fds[0])

    def close(self) -> None:
        """End it. The slot is cleaned and used again."""
        if not self._open:
            return
        self._open = False
        self.lease.pool.at(id(self), None, self.close)
        if self._proxy is not None:
            self._proxy.close()
        if self.paused:
            self.lease.pause(False)
        self._forget_files()
        for context in self.contexts.values():
            context.drop()
        for remote in self.remotes:
            remote.close()
        if self.lease.holders > 1:
            self.lease.drop(self._root)
        self.lease.let_go()

    kill = close

    @property
    def alive(self) -> bool:
        """Whether it can still be used."""
        return self._open and self.lease.slot.alive

    def start_kernel(self) -> Link:
        """A kernel without a tenant's state, in this sandbox's files."""
        link, ends = Link.make()
        with contextlib.ExitStack() as undo, ends:
            undo.callback(link.close)
            link.pid = self.lease.slot.post("kernel", self._root, fds=ends.fds)
            undo.pop_all()
        return link

    def _forget_files(self) -> None:
        if self._files is not None:
            os.close(self._files[2])
            self._files = None

    def _usable(self) -> None:
        if not self._open or not self.lease.slot.alive:
            raise SandboxGone(f"the sandbox {self.id} has ended")
        if self.paused:
            raise SandboxError(f"the sandbox {self.id} is paused; resume it first")


def _default_pool() -> Pool:
    """The pool of this process, made when first asked for and closed at exit."""
    global _default  # noqa: PLW0603  # one per process
    from statepool.sandbox.pool import Pool

    with _default_lock:
        if _default is None or _default.closed:
            _default = Pool()
            atexit.register(_default.close)
        return _default


def _outcome(wait: Callable[[], list[_T]]) -> tuple[list[_T], SandboxError | None]:
    """What it gives, or what went wrong."""
    try:
        return wait(), None
    except SandboxError as error:
        return [], error
