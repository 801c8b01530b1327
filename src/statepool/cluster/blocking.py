"""A launcher for code without an event loop: its loop runs in a thread of its own, and every call waits for it."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from statepool.cluster import Process, Program, launcher

__all__ = ["BlockingLauncher"]

_Result = TypeVar("_Result")
_END_SECONDS = 5.0


class BlockingLauncher:
    """Starts processes and ends them.

    Args:
        ray: see ``launcher``.

    Raises:
        InvalidConfig: Ray is not installed, or does not answer at the address.
    """

    def __init__(self, ray: str | None = None) -> None:
        self.launcher = launcher(ray)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="launcher", daemon=True)
        self._thread.start()

    @property
    def remote(self) -> bool:
        """See ``Launcher.remote``."""
        return self.launcher.remote

    def call(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Let the launcher's loop do ``work``; its result or its error."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def spawn(self, program: Program) -> Process:
        """See ``Launcher.spawn``."""
        return self.call(self.launcher.spawn(program))

    def end(self, process: Process, seconds: float = 0.0) -> None:
        """Wait ``seconds`` for a process to end, then kill it; a machine that is cut off is not waited for long."""
        self.call(_end(process, seconds))

    def close(self) -> None:
        """End every process that still runs, then the loop."""
        self.call(self.launcher.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _end(process: Process, seconds: float) -> None:
    for patience in (seconds, _END_SECONDS):
        try:
            await asyncio.wait_for(process.wait(), patience)
            return
        except TimeoutError:
            process.send_signal(signal.SIGKILL)
