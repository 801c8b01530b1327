"""Commands in a sandbox: started by its PID 1, read through pipes or a terminal, ended with their whole group."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
import termios
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from statepool.core.errors import InvalidRequest
from statepool.sandbox.errors import SandboxGone
from statepool.sandbox.execution import CommandResult, Output, Show
from statepool.sandbox.link import pipes
from statepool.sandbox.template import HOME

if TYPE_CHECKING:
    from statepool.sandbox.lease import Lease

__all__ = ["Command", "Commands", "Terminal"]

_SHELL = "/bin/bash"


class Command:
    """A running command. Its output is read while somebody waits for it."""

    def __init__(self, lease: Lease, pid: int, line: str, pipes: tuple[int, int, int], most: int) -> None:
        self.pid, self.line = pid, line
        self._lease = lease
        self._stdin, self._out, self._err = pipes
        self._most = most
        self._lock = threading.Lock()
        self._result: CommandResult | None = None

    def wait(
        self, timeout: float | None = None, on_stdout: Show | None = None, on_stderr: Show | None = None
    ) -> CommandResult:
        """Wait for the end; after ``timeout`` seconds its whole group is killed and the result says so."""
        with self._lock:
            if self._result is None:
                self._result = self._collect(timeout, on_stdout, on_stderr)
            return self._result

    def send_stdin(self, data: str | bytes) -> None:
        """Write to its standard input."""
        try:
            os.write(self._stdin, data.encode() if isinstance(data, str) else data)
        except OSError:
            raise SandboxGone(f"process {self.pid} takes no more input", param="pid") from None

    def close_stdin(self) -> None:
        """End of its standard input."""
        if self._stdin >= 0:
            os.close(self._stdin)
            self._stdin = -1

    def send_signal(self, number: int) -> bool:
        """Send a signal to its group; answers whether it was there."""
        return self._lease.signal(self.pid, number, group=True)

    def kill(self) -> bool:
        """End it and its group; answers whether it was there."""
        return self.send_signal(signal.SIGKILL)

    def _collect(self, timeout: float | None, on_stdout: Show | None, on_stderr: Show | None) -> CommandResult:
        try:
            ended = self._lease.ending(self.pid)
        except OSError:  # nobody could wait for it
            self.kill()
            self._close()
            raise
        output = Output(self._out, self._err, self._most, on_stdout, on_stderr)
        timed_out = not output.wait(ended, None if timeout is None else time.monotonic() + timeout)
        if timed_out:
            self.kill()
            output.wait(ended, time.monotonic() + 5)
        output.drain()
        code = self._lease.code(self.pid)
        self._close()
        return CommandResult(code, *output.text(), timed_out=timed_out)

    def _close(self) -> None:
        self.close_stdin()
        for fd in (self._out, self._err):
            os.close(fd)
        self._out = self._err = -1


class Terminal:
    """A command on a terminal of its own: what it prints is read, what is typed is written."""

    def __init__(self, lease: Lease, pid: int, fd: int) -> None:
        self.pid = pid
        self._lease, self._fd = lease, fd

    def fileno(self) -> int:
        """The manager's end of the terminal."""
        return self._fd

    def read(self, most: int = 65536) -> bytes:
        """What was printed; empty once the program has ended."""
        try:
            return os.read(self._fd, most)
        except OSError:  # EIO: nobody has the other end open
            return b""

    def write(self, data: bytes) -> None:
        """Type."""
        os.write(self._fd, data)

    def resize(self, rows: int, cols: int) -> None:
        """Tell the program how large the window is."""
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def wait(self, timeout: float | None = None) -> int:
        """Exit code of the program.

        Raises:
            TimeoutError: it still runs.
        """
        with self._lease.ending(self.pid) as ended:
            if not ended.wait(timeout):
                raise TimeoutError(f"process {self.pid} still runs")
        return self._lease.code(self.pid)

    def kill(self) -> bool:
        """End it and its group."""
        return self._lease.signal(self.pid, signal.SIGKILL, group=True)

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            os.close(self._fd)


class Commands:
    """Starts commands in one sandbox."""

    def __init__(self, lease: Lease, root: Callable[[], int], env: dict[str, str], most: int) -> None:
        self._lease, self._root, self.env, self._most = lease, root, env, most
        self._running: dict[int, Command] = {}

    def run(
        self,
        command: str,
        *,
        cwd: str = HOME,
        env: dict[str, str] | None = None,
        timeout: float | None = 60.0,
        stdin: str | bytes | None = None,
        on_stdout: Show | None = None,
        on_stderr: Show | None = None,
    ) -> CommandResult:
        """Run a line of shell and wait for it."""
        started = self.start(command, cwd=cwd, env=env)
        if stdin is not None:
            started.send_stdin(stdin)
        started.close_stdin()
        return started.wait(timeout, on_stdout, on_stderr)

    def start(self, command: str | list[str], *, cwd: str = HOME, env: dict[str, str] | None = None) -> Command:
        """Start a line of shell, or a program with its arguments, and do not wait.

        Raises:
            InvalidRequest: the folder or the program does not exist.
        """
        argv = [_SHELL, "-c", command] if isinstance(command, str) else command
        if not argv or any("\0" in part for part in argv):
            raise InvalidRequest("command: must not be empty or hold a zero byte", param="command")
        (stdin, stdin_in), (out, out_in), (err, err_in) = pipes(3)
        theirs, ours = (stdin, out_in, err_in), (stdin_in, out, err)
        try:
            pid, _ = self._spawn(argv, cwd, env, theirs)
        except BaseException:
            for fd in ours:
                os.close(fd)
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        made = Command(self._lease, pid, " ".join(argv), ours, self._most)
        self._running[pid] = made
        return made

    def terminal(
        self,
        argv: list[str] | None = None,
        *,
        rows: int = 24,
        cols: int = 80,
        cwd: str = HOME,
        env: dict[str, str] | None = None,
    ) -> Terminal:
        """Start a program, bash by default, on a terminal."""
        named = {"TERM": "xterm-256color"} | (env or {})
        pid, fds = self._spawn(argv or [_SHELL, "-i"], cwd, named, (), (rows, cols))
        return Terminal(self._lease, pid, fds[0])

    def running(self) -> list[tuple[int, str]]:
        """Process ids and command lines of everything that runs in the sandbox, kernels included."""
        return self._lease.processes()

    def get(self, pid: int) -> Command:
        """A command started before.

        Raises:
            SandboxGone: there is none with this id.
        """
        found = self._running.get(pid)
        if found is None:
            raise SandboxGone(f"pid: no command {pid} was started here", param="pid")
        return found

    def _spawn(
        self,
        argv: list[str],
        cwd: str,
        env: dict[str, str] | None,
        fds: tuple[int, ...],
        terminal: tuple[int, int] | None = None,
    ) -> tuple[int, list[int]]:
        rows, cols = terminal or (0, 0)
        variables = [f"{name}={value}" for name, value in (self.env | (env or {})).items()]
        kind = (self._root(), int(terminal is not None), rows, cols)
        try:
            answer, got = self._lease.ask("spawn", *kind, cwd, len(argv), *argv, *variables, fds=fds)
        except ValueError as error:
            raise InvalidRequest(f"command, env, cwd: {error}", param="command") from None
        except OSError as error:
            raise InvalidRequest(
                f"command: {error.strerror}", param="cwd" if "cwd" in str(error) else "command"
            ) from None
        return answer["pid"], got
