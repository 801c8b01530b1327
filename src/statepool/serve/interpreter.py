"""The loop of the code interpreter: the model's turn, the cells it asked for, the next turn, until it asks for none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from statepool.engine.request import Output, Request
from statepool.serve.containers import Containers, Outcome
from statepool.serve.surface import Outputs, Serving

__all__ = ["Cell", "CodeJob", "Interpreted"]


@dataclass(frozen=True, slots=True)
class Cell:
    """Code the model wants to be run, and where. ``domain`` is whom a container that must be made belongs to."""

    container_id: str
    code: str
    domain: str | None = None


@runtime_checkable
class CodeJob(Protocol):
    """A job of several turns; see ``Job``. It holds state and decides; nothing runs in it."""

    @property
    def runs_code(self) -> bool:
        """Whether it may have cells to run."""
        ...

    def cell(self) -> Cell | None:
        """What to run now; None when the last turn asked for nothing more."""
        ...

    def ran(self, outcome: Outcome) -> None:
        """Take what the cell gave; the next ``push`` tells of it."""
        ...

    def next_turn(self) -> Request | None:
        """The request that goes on behind the cells; None when the answer is complete."""
        ...


class Interpreted:
    """Outputs of all turns of one job, as one stream. Behind each cell comes an output without tokens, so that the
    job is asked for the events.
    """

    def __init__(self, engine: Serving, containers: Containers, job: CodeJob, first: Outputs) -> None:
        self._engine = engine
        self._containers = containers
        self._job = job
        self._turn = first

    def __aiter__(self) -> Interpreted:
        return self

    async def __anext__(self) -> Output:
        """The next output.

        Raises:
            StatepoolError: the engine or the sandbox failed.
        """
        while True:
            try:
                return await anext(self._turn)
            except StopAsyncIteration:
                pass
            if (cell := self._job.cell()) is not None:
                self._job.ran(await self._containers.run(cell.container_id, cell.code, cell.domain))
                return Output("", (), "")
            request = self._job.next_turn()
            if request is None:
                raise StopAsyncIteration
            self._turn = await self._engine.submit(request)

    async def aclose(self) -> None:
        """Take what still runs out of the batch. A cell under way is interrupted by whoever cancels ``__anext__``."""
        await self._turn.aclose()
