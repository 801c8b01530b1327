"""What a store must do to be measured. One class per store, one session per thread that uses it.

Nothing here may slow a side down: ``put`` and the function given by ``getter`` are called in the timed loops as they
are, so a store whose own method fits assigns that method itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

Level = Literal["power", "process"]
"""What an acknowledged write survives: the loss of power, or only the end of the process."""
Pair = tuple[bytes, bytes]
Place = tuple[str, bytes]
"""A table and a key in it."""
Change = Callable[[Sequence[bytes | None]], Mapping[Place, bytes | None]]
"""From the values read to the values written; ``None`` deletes. May be called again after a conflict."""
Get = Callable[[bytes], bytes | None]
Planned = Callable[["Session"], object]
"""One transaction, drawn before the clock starts: what is timed is the store, not the draw."""

MAIN = "main"
"""The table of plain puts and gets."""


class Session:
    """One thread's access to a store."""

    put: Callable[[bytes, bytes], object]
    """Write one pair to the main table, as one commit."""

    def put_many(self, pairs: Sequence[Pair]) -> None:
        """Write to the main table, all in one commit."""
        self.fill(MAIN, pairs)

    def fill(self, table: str, pairs: Sequence[Pair]) -> None:
        """Write to any table, all in one commit."""
        raise NotImplementedError

    @contextmanager
    def getter(self, table: str) -> Iterator[Get]:
        """The fastest way to read many single keys of a table."""
        raise NotImplementedError(f"{type(self).__name__} has no reads")
        yield

    def read(self, places: Sequence[Place]) -> list[bytes | None]:
        """The values at these places, all of one moment."""
        raise NotImplementedError(f"{type(self).__name__} has no transactions")

    def update(self, places: Sequence[Place], change: Change) -> None:
        """Read these places and write what ``change`` makes of them, as one atomic commit."""
        raise NotImplementedError(f"{type(self).__name__} has no transactions")

    def pass_through(self, values: Sequence[bytes]) -> int:
        """Put these into a queue, take as many out, acknowledge them; how many were acknowledged."""
        raise NotImplementedError(f"{type(self).__name__} has no queue")

    def close(self) -> None:
        """Give back what this session alone holds."""


class System:
    """One store in a folder of its own."""

    ordered = MAIN
    """The table that ordered reads use."""

    def open(self, folder: Path, level: Level) -> None:
        """Open or create; ``folder`` exists."""
        raise NotImplementedError

    def session(self) -> Session:
        """Access for one more thread."""
        raise NotImplementedError

    def versions(self) -> dict[str, str]:
        """Names and versions worth printing."""
        raise NotImplementedError

    def close(self) -> None:
        """Close in good order."""
        raise NotImplementedError

    def settle(self) -> None:
        """Bring everything written so far out of the log, into the form that an opening reads directly."""

    def create_tables(self, names: Iterable[str]) -> None:
        """Make tables known that must be declared."""
