"""A primary: a folder's store behind an address, its lease at a witness, and the log for its mirror."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from statepool.core.errors import Fenced, Unavailable
from statepool.store.net.calls import Caller
from statepool.store.net.daemon import Daemon
from statepool.store.net.feed import Feed
from statepool.store.net.framing import address
from statepool.store.net.node import Node, read_node, write_node
from statepool.store.net.roles import TERM_SHIFT, Answer, Primary
from statepool.store.net.service import Service
from statepool.store.store import open as open_store

PATIENCE = 2.0
"""Seconds a write waits for the mirror, and a mirror may be silent."""


class Serving:
    """One primary. ``start``, then ``stop``; or ``run`` until cancelled.

    ``witness`` is the address of one, with its lease in seconds: then the primary acknowledges only while its lease
    runs. ``options`` go to :func:`statepool.store.open`.
    """

    def __init__(
        self, folder: Path, listen: str, *, witness: str | None = None, lease: float = 3.0, **options: Any
    ) -> None:
        for url in (listen, witness):
            if url is not None:
                address(url)
        self._folder, self._listen, self._witness, self._lease = folder, listen, witness, lease
        self._options = options
        self._renewing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open the store and listen.

        Raises:
            Fenced: a newer primary exists.
            StoreError, InvalidRequest: the store cannot be opened, or the address not be taken.
        """
        node = read_node(self._folder) or Node()
        if node.fenced > node.term:
            raise Fenced(f"path: term {node.fenced} has begun elsewhere; make this folder its mirror (store mirror)")
        self._node = node
        self.store = await asyncio.to_thread(
            lambda: open_store(self._folder, durability="power", epoch=node.term << TERM_SHIFT, **self._options)
        )
        write_node(self._folder, node)
        native = self.store.native
        lease = None if self._witness is None else self._lease
        epoch = native.facts()["epoch"]
        self.role = Primary(node.name, node.term, epoch, native.durable_lsn, lease, PATIENCE)
        slots = await asyncio.to_thread(self.store.counter, f"slots of term {node.term}")
        self.daemon = Daemon(native, self.role, Service(native, node.term, slots))
        self.feed = Feed(self._folder, native, self.role, self.daemon.durability.advance)
        feed = self.feed
        self.daemon.extra |= {"pull": feed.pull, "copy": feed.copy, "piece": feed.piece, "fence": self._fence}
        self.daemon.durability.on_durable.append(self.feed.wake)
        if self._witness is not None:
            self._renewing = asyncio.create_task(self._renew(self._witness))
        await self.daemon.start(self._listen)

    async def _renew(self, witness: str) -> None:
        """A renewal every third of the lease; one that is lost costs nothing but its time."""
        caller = Caller(witness)
        while True:
            try:
                reply = await caller.call("renew", [self.role.renewal(time.monotonic())], self._lease / 3, kind=Answer)
                self.role.answered(reply)
            except Unavailable:
                pass
            self._remember_fence()
            switching = self.role.wanted != self.role.mirror
            await asyncio.sleep(self._lease / (50 if switching else 3))

    async def _fence(self, session: Any, term: int) -> int:
        """Somebody says which term has begun."""
        self.role.heard(term)
        self._remember_fence()
        return self.role.term

    def _remember_fence(self) -> None:
        if self.role.fenced > self._node.fenced:
            self._node.fenced = self.role.fenced
            write_node(self._folder, self._node)

    async def run(self) -> None:
        """Serve until cancelled."""
        await self.start()
        try:
            await asyncio.Event().wait()
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Let go: what was acknowledged is durable, the folder is closed."""
        if self._renewing is not None:
            self._renewing.cancel()
        await self.daemon.stop()
        self.feed.close()
        await asyncio.to_thread(self.store.close)
