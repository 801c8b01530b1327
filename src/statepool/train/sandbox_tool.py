"""The Python tool in the sandboxes of `statepool.sandbox`: each conversation is a fork of one that is already warm."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from statepool.core.errors import InvalidConfig, InvalidRequest, StatepoolError
from statepool.sandbox import Pool, Sandbox
from statepool.sandbox.errors import IsolationUnavailable
from statepool.sandbox.sandbox import Snapshot
from statepool.train.dialogue import ToolBroken, ToolTimeout


class SandboxHost:
    """Warm sandboxes for the conversations of one run; those of a group are forks of the same one.

    Args:
        seconds: wall time of one call.
        warm: how many there are; their forks share a slot's memory and processes.

    Raises:
        InvalidConfig: nothing can isolate code on this machine.
    """

    def __init__(self, seconds: float, warm: int = 8) -> None:
        self.seconds = seconds
        try:
            self._pool = Pool(low=1, high=warm)
        except IsolationUnavailable as error:
            raise InvalidConfig(
                f"no sandbox can be had here ({error.message}); isolation: process runs tools without one",
                param="isolation",
            ) from None
        self._warm: list[tuple[Sandbox, Snapshot] | None] = [None] * warm
        self._locks = [threading.Lock() for _ in range(warm)]

    def tool(self, group: int) -> SandboxTool:
        """The tool of one conversation of a group; its sandbox comes with the first call."""
        return SandboxTool(self, group)

    def fork(self, group: int) -> Sandbox:
        """A sandbox for one conversation.

        Raises:
            ToolBroken: none could be made.
        """
        place = group % len(self._warm)
        try:
            with self._locks[place]:
                found = self._warm[place]
                if found is None:
                    sandbox = Sandbox(pool=self._pool, domain="train", seed=0)
                    sandbox.run_code("0")
                    found = self._warm[place] = sandbox, sandbox.snapshot()
                return found[1].fork()[0]
        except StatepoolError as error:
            self._forget(place)
            raise ToolBroken(f"no sandbox could be forked: {error.message}") from None

    def close(self) -> None:
        """End every sandbox."""
        for place in range(len(self._warm)):
            self._forget(place)
        self._pool.close()

    def _forget(self, place: int) -> None:
        with self._locks[place]:
            found, self._warm[place] = self._warm[place], None
        if found is not None:
            found[1].close()
            found[0].close()


class SandboxTool:
    """The tool ``python(code)`` of one conversation; names stay from call to call, as in a notebook."""

    def __init__(self, host: SandboxHost, group: int) -> None:
        self._host = host
        self._group = group
        self._sandbox: Sandbox | None = None

    def call(self, arguments: Mapping[str, Any]) -> str:
        """Run the code and return what it printed; the last line names the exception that ended it, if one did.

        Raises:
            InvalidRequest: ``code`` is missing or no text. ToolTimeout: it ran too long. ToolBroken: the sandbox is
                lost.
        """
        code = arguments.get("code")
        if not isinstance(code, str):
            raise InvalidRequest("python needs the argument code, a text", param="code")
        if self._sandbox is None:
            self._sandbox = self._host.fork(self._group)
        try:
            done = self._sandbox.run_code(code, timeout=self._host.seconds)
        except StatepoolError as error:
            raise ToolBroken(f"the sandbox was lost: {error.message}") from None
        if done.timed_out:
            raise ToolTimeout(f"the code ran longer than {self._host.seconds:g} s")
        said: str = done.logs.stdout
        if done.error is not None:
            said += f"{done.error.name}: {done.error.value}"
        return said.strip()

    def close(self) -> None:
        """Give the sandbox back."""
        if self._sandbox is not None:
            self._sandbox.close()
            self._sandbox = None
