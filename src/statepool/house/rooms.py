"""The processes beside the server: started before it, started again when they end, ended after it."""

from __future__ import annotations

from types import TracebackType

from statepool.cluster import Launcher, Program, launcher
from statepool.cluster.launch import LOCAL_HOST
from statepool.house.config import House
from statepool.serve.kept import KeptProcesses

__all__ = ["Rooms"]

_MODULE = "statepool.house.room"


class Rooms:
    """The store, the vector server and the sandbox server of one platform. Use it as an asynchronous context manager.

    Args:
        house: what to start.
        ray: address of a Ray cluster that places the sandbox server; store and index stay where their files are.
    """

    def __init__(self, house: House, ray: str | None = None) -> None:
        self._house = house
        self._ray = ray
        self._kept: list[KeptProcesses] = []
        self._launchers: list[Launcher] = []
        self.sandbox: str | None = None
        """Where the sandbox server answers, once it does."""
        self.vector: str | None = None
        """Where the vector server answers, once it does."""

    async def __aenter__(self) -> Rooms:
        try:
            if self._house.file.store is not None:
                await self._start("store", *self._store(), launcher(None))
            if self._house.file.vector is not None:
                self.vector = await self._start("vector server", *self._index(), launcher(None))
            if self._house.file.sandbox is not None:
                self.sandbox = await self._start("sandbox server", *self._sandboxes(), launcher(self._ray))
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End all. Safe to call twice."""
        while self._kept:
            await self._kept.pop().close()
        while self._launchers:
            await self._launchers.pop().close()

    async def _start(self, what: str, program: Program, address: str, starter: Launcher) -> str:
        self._launchers.append(starter)
        kept = KeptProcesses(what, starter, [program], [address])
        self._kept.append(kept)
        await kept.start()
        return kept.addresses[0]

    def _store(self) -> tuple[Program, str]:
        room = self._house.file.store
        assert room is not None
        return Program(_MODULE, ("store", str(room.path), "--capacity", room.capacity)), room.address

    def _index(self) -> tuple[Program, str]:
        room = self._house.file.vector
        assert room is not None
        return Program(_MODULE, ("vector", str(room.path))), f"http://{LOCAL_HOST}:{room.port}"

    def _sandboxes(self) -> tuple[Program, str]:
        room = self._house.file.sandbox
        assert room is not None
        flags = ["--driver", room.driver, "--ready", str(room.ready), "--most", str(room.most)]
        flags += [part for path in room.templates for part in ("--template", str(path))]
        flags += ["--network"] if room.network else []
        host = "{host}" if self._ray else LOCAL_HOST
        return Program(_MODULE, ("sandbox", *flags)), f"http://{host}:{room.port}"
