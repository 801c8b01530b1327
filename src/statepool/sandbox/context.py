"""One kernel of a sandbox, from outside: run a cell, interrupt it, notice when it has ended."""

from __future__ import annotations

import contextlib
import select
import signal
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from statepool.sandbox.channel import Closed
from statepool.sandbox.errors import SandboxError, SandboxGone
from statepool.sandbox.execution import ErrorInfo, Execution, Logs, Output, Result, Show
from statepool.sandbox.link import Link

if TYPE_CHECKING:
    from statepool.sandbox.sandbox import Sandbox

__all__ = ["Context"]

_GRACE_SECONDS = 1.0
"""Between SIGINT and SIGKILL."""
_MESSAGE_SECONDS = 2.0
"""A message that has begun to arrive may pause so long."""


class Context:
    """One kernel of a sandbox: a namespace of its own, the sandbox's files and processes."""

    def __init__(self, sandbox: Sandbox, cwd: str, seed: int | None) -> None:
        self.id = f"{sandbox.id[:12]}{len(sandbox.contexts)}"
        self.cwd, self.seed = cwd, seed
        self.count = 0
        self._sandbox = sandbox
        self.lock = threading.Lock()
        """Held while a cell runs, or a moment is kept."""
        self._link: Link | None = None

    def attach(self, link: Link, begin: bool = True) -> Link:
        """Take this kernel; unless it has state already, tell it whose it is."""
        self.drop()
        self._link = link
        if begin:
            link.channel.instruct({"op": "begin", "env": self._sandbox.variables, "cwd": self.cwd, "seed": self.seed})
        return link

    def tell(self, variables: dict[str, str]) -> None:
        """Variables from now on."""
        with self.lock:
            if self._link is not None:
                self._link.channel.instruct({"op": "begin", "env": variables, "cwd": None, "seed": None})

    @property
    def alive(self) -> bool:
        """Whether it has a kernel now."""
        return self._link is not None

    @property
    def pid(self) -> int:
        """Of the kernel, inside."""
        return self._need().process()

    def run(
        self,
        code: str,
        timeout: float | None,
        env: dict[str, str] | None,
        on_stdout: Show | None,
        on_stderr: Show | None,
    ) -> Execution:
        """Run one cell."""
        with self.lock:
            deadline = None if timeout is None else time.monotonic() + timeout
            link = self._need()
            output = Output(*link.pipes, self._sandbox.limits.output_bytes, on_stdout, on_stderr)
            try:
                link.channel.instruct({"op": "run", "code": code, "env": env})
                interrupted = not output.wait(link.channel, deadline)
                if interrupted:
                    self.interrupt()
                    if not output.wait(link.channel, time.monotonic() + _GRACE_SECONDS):
                        self._sandbox.lease.signal(self.pid, signal.SIGKILL)
                        raise Closed("killed")
                answer = self.receive(_MESSAGE_SECONDS)
            except Closed:
                output.drain()
                return self._died(output, timeout if deadline and time.monotonic() >= deadline else None)
            output.drain()
            return self._execution(answer, output, timeout if interrupted else None)

    def interrupt(self) -> bool:
        """Raise KeyboardInterrupt in the running cell."""
        return self._sandbox.lease.signal(self.pid, signal.SIGINT)

    def post(self, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        """A message to the kernel; its answer is not waited for."""
        with self._living():
            self._need().channel.instruct(message, fds)

    def ask(self, message: dict[str, Any], fds: tuple[int, ...] = ()) -> dict[str, Any]:
        """A question to the kernel between cells."""
        self.post(message, fds)
        with self._living():
            return self.receive(30.0)

    @contextlib.contextmanager
    def _living(self) -> Iterator[None]:
        try:
            yield
        except Closed:
            self.drop()
            raise SandboxGone("the kernel has ended") from None

    def receive(self, timeout: float) -> dict[str, Any]:
        """The kernel's next message. A tenant may send half of one and stop: then this ends with ``Closed``."""
        channel = self._need().channel
        poll = select.poll()  # select() ends at descriptor 1023
        poll.register(channel, select.POLLIN)
        if not poll.poll(1e3 * timeout):
            raise Closed("the kernel says nothing")
        channel.socket.settimeout(_MESSAGE_SECONDS)
        message, _ = channel.receive()
        channel.socket.settimeout(None)
        return message

    def drop(self) -> None:
        """Close the connection; the kernel ends with it."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def kill(self) -> None:
        """End the kernel; the next cell starts a new one."""
        if self._link is not None:
            self._sandbox.lease.kill(self.pid)
            self.drop()

    def _need(self) -> Link:
        """The kernel, started anew where the last one has ended."""
        return self._link or self.attach(self._sandbox.start_kernel())

    def _died(self, output: Output, timeout: float | None) -> Execution:
        """The kernel is gone: out of memory, a crash, os._exit, or the deadline. State is lost, and the result says
        so.
        """
        out, err = output.text()
        self.drop()
        if timeout is not None:
            error = ErrorInfo(
                "TimeoutError", f"the cell ran longer than {timeout:g} s and took no interrupt; its state is lost", ""
            )
        else:
            kills = self._sandbox.metrics().oom_kills
            why = "out of memory" if kills > self._sandbox.kills else "it crashed or ended itself"
            self._sandbox.kills = kills
            error = ErrorInfo(
                "KernelDied", f"the kernel has ended ({why}); its state is lost and the next cell starts a new one", ""
            )
        return Execution(logs=Logs(out, err), error=error, execution_count=self.count, timed_out=timeout is not None)

    def _execution(self, answer: dict[str, Any], output: Output, timeout: float | None) -> Execution:
        if answer.get("op") != "done":
            raise SandboxError(f"the kernel failed: {answer.get('error', answer)}")
        try:
            error = (
                ErrorInfo(*(str(answer["error"][key]) for key in ("name", "value", "traceback")))
                if answer["error"]
                else None
            )
            results = [
                Result({k: v for k, v in form.items() if k != "main"}, bool(form.get("main")))
                for form in answer["results"]
            ]
            self.count, seconds = int(answer["count"]), float(answer["seconds"])
        except (KeyError, TypeError, ValueError, AttributeError) as wrong:
            raise SandboxError(f"the kernel sent no result: {wrong!r}") from None
        timed_out = False
        if timeout is not None and error is not None and error.name == "KeyboardInterrupt":
            timed_out = True
            error = ErrorInfo("TimeoutError", f"the cell ran longer than {timeout:g} s", error.traceback)
        return Execution(results, Logs(*output.text()), error, self.count, seconds, timed_out)
