"""A view that many watchers share: it is made at most once a period, and each watcher hears of changes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

from statepool.core.errors import StatepoolError

__all__ = ["Look", "Shared", "away", "off"]

Look: TypeAlias = Callable[[], Awaitable[dict[str, Any]]]

PERIOD_SECONDS = 1.0
_SILENT_PERIODS = 15
"""Periods without a change after which a watcher gets a sign of life, so that its connection is not taken for dead."""


def off(hint: str) -> dict[str, Any]:
    """What a page shows of a room that is not part of this platform; ``hint`` says how to make it one."""
    return {"state": "off", "why": hint}


def away(why: str) -> dict[str, Any]:
    """What a page shows of a room that should be there and does not answer."""
    return {"state": "away", "why": why}


class Shared:
    """One page's figures.

    Args:
        look: makes them; what it raises because a room is gone is shown as ``away``.
    """

    def __init__(self, look: Look, clock: Callable[[], float] = time.monotonic) -> None:
        self._look = look
        self._clock = clock
        self._lock = asyncio.Lock()
        self._at = float("-inf")
        self._text = ""

    async def text(self) -> str:
        """The figures as one line of JSON, at most a period old."""
        async with self._lock:
            if self._clock() - self._at >= PERIOD_SECONDS:
                try:
                    found = {"state": "live", **await self._look()}
                except StatepoolError as error:
                    found = away(error.message)
                except FileNotFoundError as error:
                    found = away(f"{error.filename} is not there yet")
                except (OSError, ValueError) as error:
                    found = away(str(error) or type(error).__name__)
                except (LookupError, TypeError) as error:  # a file of something else
                    found = away(f"what is there has another form: {type(error).__name__} {error}")
                self._text = json.dumps(found, separators=(",", ":"))
                self._at = self._clock()
            return self._text

    async def events(self, ending: Callable[[], bool]) -> AsyncIterator[str]:
        """Server-sent events, one at once and one per change, until ``ending``."""
        said, silent = "", 0
        while not ending():
            now = await self.text()
            if now != said:
                said, silent = now, 0
                yield f"data: {now}\n\n"
            elif (silent := silent + 1) >= _SILENT_PERIODS:
                silent = 0
                yield ": still here\n\n"
            await asyncio.sleep(PERIOD_SECONDS)
