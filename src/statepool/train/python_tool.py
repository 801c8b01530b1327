"""A Python tool in processes of their own with limits: each call is a fork of one warm interpreter.

This keeps a model's code from hanging or filling the trainer, and away from its memory. It is no security boundary: the
code runs as the same user and sees the same files. Where code may be hostile, use the sandbox pool.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from statepool.core.errors import InvalidRequest
from statepool.train.dialogue import ToolBroken, ToolTimeout


@dataclass(frozen=True, slots=True)
class PythonLimits:
    """Of one call: wall seconds, bytes of memory, bytes of output that are kept."""

    seconds: float = 2.0
    memory: int = 512 << 20
    output: int = 1 << 16


class Interpreter:
    """The warm interpreter that calls are forked from; started when first needed, and again if it died."""

    def __init__(self, limits: PythonLimits | None = None) -> None:
        self.limits = limits or PythonLimits()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, code: str) -> str:
        """What ``code`` printed; its last line names the exception that ended it, if one did.

        Raises:
            ToolTimeout: it ran too long. ToolBroken: the interpreter cannot be started or died twice.
        """
        ask = {"code": code, "seconds": self.limits.seconds, "memory": self.limits.memory, "output": self.limits.output}
        with self._lock:
            answer = self._ask(ask) or self._ask(ask)
        if answer is None:
            raise ToolBroken("the interpreter for the python tool died twice on one call")
        if answer["late"]:
            raise ToolTimeout(f"the code ran longer than {self.limits.seconds:g} s")
        return str(answer["said"])

    def close(self) -> None:
        """End the interpreter."""
        with self._lock:
            self._end()

    def _ask(self, message: dict[str, Any]) -> dict[str, Any] | None:
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(msgspec.json.encode(message) + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            self._end()
            return None
        answer: dict[str, Any] = msgspec.json.decode(line)
        return answer

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            command = [sys.executable, "-I", str(Path(__file__).with_name("python_server.py"))]
            try:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"PATH": os.environ.get("PATH", "")}
                )
            except OSError as error:
                raise ToolBroken(f"the python tool cannot start {sys.executable}: {error}") from None
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=5)


class PythonTool:
    """The tool ``python(code)`` of one conversation; every call starts from a fresh namespace."""

    def __init__(self, interpreter: Interpreter) -> None:
        self._interpreter = interpreter

    def call(self, arguments: Mapping[str, Any]) -> str:
        """Run the code and return what it printed, without white space at the ends.

        Raises:
            InvalidRequest: ``code`` is missing or no text. ToolTimeout, ToolBroken: see ``Interpreter.run``.
        """
        code = arguments.get("code")
        if not isinstance(code, str):
            raise InvalidRequest("python needs the argument code, a text", param="code")
        return self._interpreter.run(code).strip()

    def close(self) -> None:
        """Nothing to give back: the interpreter is shared."""
