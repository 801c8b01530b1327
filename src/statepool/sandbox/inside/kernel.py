"""The kernel: runs cells of Python in one namespace, keeps it between them, and forks itself for snapshots.

It speaks to the manager over one socket. Standard output and error are pipes that the manager reads, so that what
child processes
print is caught as well. The manager believes nothing that comes from here: a tenant may have changed all of it.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import inspect
import linecache
import marshal
import os
import random
import signal
import sys
import time
import traceback
import types
from typing import Any

from statepool.native import _sandbox  # type: ignore[attr-defined]
from statepool.sandbox.channel import encode
from statepool.sandbox.inside import branch, display, forked

__all__ = ["Kernel", "prepare", "reseed", "serve"]

_AWAIT = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
_HERE = __file__
_on_signal = inspect.unwrap(signal.signal)
"""Without the enumerations."""
_kernel: Kernel | None = None


class Kernel:
    """One namespace and the loop that runs cells in it."""

    def __init__(self, line: int = -1) -> None:
        self.line = line
        """The socket to the manager."""
        self.count = 0
        self.module = types.ModuleType("__main__")
        self.module.__dict__["__builtins__"] = builtins
        self.module.__dict__["display"] = self.display
        self._results: list[dict[str, Any]] = []
        self.turn: list[str] = []
        """Cells since the last moment."""
        self.told = False
        """Whether variables were set from outside since then."""
        self.holders: list[int] = []
        """Processes that hold its moments."""

    def loop(self) -> None:
        """Answer messages until the manager closes the socket."""
        while (told := _sandbox.receive(self.line, self.count > 0)) is not None:
            message, fds = marshal.loads(told[0]), told[1]  # noqa: S302  # the manager is trusted here
            operation = message.pop("op")
            if operation == "begin":
                self._begin(message)
            elif operation == "run":
                self.tell(self.run(message["code"], message["env"] or {}))
            else:
                branch.OPERATIONS[operation](self, message, fds)

    def tell(self, message: dict[str, Any], fds: list[int] = []) -> None:  # noqa: B006  # it is not changed
        """Send a message to the manager."""
        _sandbox.tell(self.line, encode(message), fds)

    def _begin(self, message: dict[str, Any]) -> None:
        """A tenant has come: its variables, its folder, its seed."""
        self.told = True
        for name, value in message["env"].items():  # ``update`` writes to more pages
            os.environ[name] = value
        if message["cwd"] is not None:
            os.chdir(message["cwd"])
        if message["seed"] is not None:
            reseed(message["seed"])

    def run(self, code: str, env: dict[str, str]) -> dict[str, Any]:
        """Run one cell; answers its results, its error, and the count."""
        self.count += 1
        self.turn.append(code)
        self._results = []
        started = time.perf_counter()
        before = {name: os.environ.get(name) for name in env}
        for name, text in env.items():
            os.environ[name] = text
        error = None
        try:
            _on_signal(signal.SIGINT, signal.default_int_handler)
            self._execute(code)
        except SystemExit as leaving:
            if leaving.code not in (None, 0):
                error = self._error(leaving)
        except BaseException as raised:  # noqa: BLE001  # a cell may raise anything
            error = self._error(raised)
        finally:
            try:  # ``contextlib.suppress`` writes to 19 pages more
                _on_signal(signal.SIGINT, signal.SIG_IGN)
                self._results += display.figures()
            except BaseException:  # noqa: BLE001, S110  # an interrupt that came late, or a figure that is broken
                pass
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        for stream in (sys.stdout, sys.stderr):
            try:  # noqa: SIM105
                stream.flush()
            except Exception:  # noqa: BLE001, S110  # a tenant may have replaced or closed it
                pass
        seconds = time.perf_counter() - started
        return {"op": "done", "count": self.count, "results": self._results, "error": error, "seconds": seconds}

    def display(self, *values: Any) -> None:
        """Show values richly, as a notebook does."""
        self._results += [display.bundle(value) for value in values]

    def _execute(self, code: str) -> None:
        name = f"<cell {self.count}>"
        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
        tree = ast.parse(display.shell_lines(code), name)
        last: ast.Expression | None = None
        if tree.body and isinstance(tree.body[-1], ast.Expr) and not code.rstrip().endswith(";"):
            last = ast.Expression(tree.body.pop().value)  # type: ignore[attr-defined]
        space = self.module.__dict__
        if tree.body:
            self._evaluate(compile(tree, name, "exec", _AWAIT, dont_inherit=True), space)
        if last is not None:
            value = self._evaluate(compile(last, name, "eval", _AWAIT, dont_inherit=True), space)
            if value is not None:
                space["_"] = value
                self._results.append(display.bundle(value) | {"main": True})

    def _evaluate(self, code: types.CodeType, space: dict[str, Any]) -> Any:
        value = eval(code, space)  # noqa: S307  # this is what the sandbox is for
        if code.co_flags & inspect.CO_COROUTINE:
            return asyncio.run(value)
        return value

    def _error(self, error: BaseException) -> dict[str, Any]:
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == _HERE:
            trace = trace.tb_next
        try:
            lines = traceback.format_exception(type(error), error, trace)
            value = str(error)
        except Exception as worse:  # noqa: BLE001  # __str__ of a tenant's class
            lines, value = [f"{type(error).__name__}: <{type(worse).__name__} in __str__>\n"], ""
        return {"name": type(error).__name__, "value": value, "traceback": "".join(lines)}


def prepare(env: dict[str, str]) -> None:
    """In the zygote, once: the kernel, its streams and its surroundings, so that a fork has nothing left to make."""
    global _kernel  # noqa: PLW0603  # one per process
    os.environ.clear()
    os.environ.update(env)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.argv = [""]
    places = (sys.prefix, sys.base_prefix, "/usr", "/opt/packages")  # the last: PACKAGES of a template
    sys.path = ["", *(path for path in sys.path if path.startswith(places))]
    _kernel = Kernel()
    sys.modules["__main__"] = _kernel.module


def serve(fd: int) -> None:
    """Become the kernel on this socket; returns when the manager closes it."""
    assert _kernel is not None
    forked.after()
    reseed(None)
    _kernel.line = fd
    _kernel.loop()


def reseed(seed: int | None) -> None:
    """No two sandboxes draw the same numbers, unless a seed is asked for. OpenSSL sees to itself."""
    random.seed(seed)
    _reseed_numpy(seed)


def _reseed_numpy(seed: int | None) -> None:
    if (numpy_random := sys.modules.get("numpy.random")) is None:
        return
    if seed is not None:
        numpy_random.seed(seed % 2**32)
        return
    # Not seed(): drawing entropy its way runs much more code, and each page that a fork writes to is a page of its own.
    numpy = sys.modules["numpy"]
    numpy_random.set_state(("MT19937", numpy.frombuffer(os.urandom(2496), numpy.uint32), 624))
