"""What a server holds: sandboxes with their tokens and deadlines, and snapshots by name."""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from statepool.core.errors import InvalidRequest, Unauthorized
from statepool.sandbox.errors import SandboxGone
from statepool.sandbox.pool import Pool
from statepool.sandbox.sandbox import Context, Sandbox, Snapshot

__all__ = ["Record", "Registry"]

_MOST_SECONDS = 24 * 3600


@dataclass(slots=True, eq=False)
class Record:
    """One sandbox of the server."""

    sandbox: Sandbox
    template: str
    metadata: dict[str, str]
    ends: float
    auto_pause: bool = False
    prefix: str = ""
    """Of the id: the node that it is on."""
    parent: str | None = None
    """The sandbox it was forked from, or the snapshot it began from."""
    token: str = field(default_factory=lambda: secrets.token_hex(20))
    services: dict[str, Any] = field(default_factory=dict)
    """Wire services bound to this sandbox, made when first used."""

    @property
    def id(self) -> str:
        """Name in the API."""
        return self.prefix + self.sandbox.id

    @property
    def state(self) -> str:
        """``running`` or ``paused``."""
        return "paused" if self.sandbox.paused else "running"

    def check(self, token: str | None) -> None:
        """Refuse who does not know the token.

        Raises:
            Unauthorized: missing or wrong.
        """
        if token is None or not hmac.compare_digest(token, self.token):
            raise Unauthorized("X-Access-Token: missing or not this sandbox's")

    def context(self, name: str | None) -> Context:
        """A kernel by name; the first one by default."""
        if name is None:
            return self.sandbox.context
        found = self.sandbox.contexts.get(name)
        if found is None:
            raise SandboxGone(f"context: there is no {name!r}", param="context_id")
        return found


class Registry:
    """All sandboxes and snapshots of one server."""

    def __init__(self, pool: Pool, *, network: bool = False, node: str = "") -> None:
        """With ``network`` sandboxes may ask for egress through the proxy; otherwise such a request is refused.
        ``node`` is the name of this server among several; ids begin with it.
        """
        self.pool = pool
        self._prefix = f"{node}-" if node else ""
        self._network = network
        self._lock = threading.Lock()
        self._records: dict[str, Record] = {}
        self._snapshots: dict[str, Snapshot] = {}

    def create(
        self,
        template: str,
        *,
        seconds: float,
        metadata: dict[str, str] | None = None,
        env: dict[str, str] | None = None,
        auto_pause: bool = False,
        network: tuple[str, ...] = (),
    ) -> Record:
        """A new sandbox of a template, or from a snapshot of that name."""
        if network and not self._network:
            raise InvalidRequest("network: this server gives no egress; start it with --network", param="network")
        parent = None
        with self._lock:
            moment = self._snapshots.get(template.removeprefix(self._prefix))
        if moment is not None:
            sandbox = moment.fork()[0]
            parent = template
        else:
            plain = {"base": "py", "code-interpreter-v1": "py"}  # what SDKs call their defaults
            kind = template if template in self.pool.templates else plain.get(template, template)
            sandbox = Sandbox(kind, pool=self.pool, env=env, network=network)
        return self._keep(Record(sandbox, template, metadata or {}, 0.0, auto_pause, parent=parent), seconds)

    def fork(self, source: str, count: int, seconds: float) -> list[Record]:
        """Sandboxes that go on from where this one is. A paused one is resumed for it and paused again."""
        record = self.get(source)
        paused = record.sandbox.paused
        if paused:
            record.sandbox.resume()
        try:
            kids = record.sandbox.fork(count)
        finally:
            if paused:
                record.sandbox.pause()
        return [
            self._keep(Record(kid, record.template, dict(record.metadata), 0.0, parent=source), seconds) for kid in kids
        ]

    def snapshot(self, source: str, name: str | None) -> tuple[str, Snapshot]:
        """Keep a moment under a name."""
        moment = self.get(source).sandbox.snapshot()
        name = name or moment.id
        with self._lock:
            old = self._snapshots.pop(name, None)
            self._snapshots[name] = moment
        if old is not None:
            old.close()
        return self._prefix + name, moment

    def snapshots(self, source: str | None = None) -> list[str]:
        """Names, of one sandbox's moments or of all."""
        with self._lock:
            return [
                self._prefix + name
                for name, moment in self._snapshots.items()
                if source in (None, self._prefix + moment.source)
            ]

    def forget(self, name: str) -> bool:
        """Give a snapshot up; answers whether it was there."""
        with self._lock:
            moment = self._snapshots.pop(name.removeprefix(self._prefix), None)
        if moment is not None:
            moment.close()
        return moment is not None

    def get(self, name: str) -> Record:
        """A sandbox that lives.

        Raises:
            SandboxGone: there is none.
        """
        with self._lock:
            record = self._records.get(name)
        if record is None or not record.sandbox.alive:
            raise SandboxGone(f"sandbox {name} was not found")
        return record

    def records(self) -> list[Record]:
        """All that live, oldest first."""
        with self._lock:
            return [record for record in self._records.values() if record.sandbox.alive]

    def set_timeout(self, record: Record, seconds: float) -> None:
        """End it, or pause it, so many seconds from now."""
        if not 0 <= seconds <= _MOST_SECONDS:
            raise InvalidRequest(f"timeout: must be 0 to {_MOST_SECONDS} seconds, got {seconds}", param="timeout")
        record.ends = time.time() + seconds
        self.pool.at(("server", record.id), time.monotonic() + seconds, lambda: self._expire(record))

    def close(self, name: str) -> bool:
        """End a sandbox; answers whether it was there."""
        with self._lock:
            record = self._records.pop(name, None)
        if record is None:
            return False
        self.pool.at(("server", record.id), None, lambda: None)
        record.sandbox.close()
        return True

    def close_all(self) -> None:
        """End everything."""
        for record in self.records():
            self.close(record.id)
        for name in self.snapshots():
            self.forget(name)

    def _keep(self, record: Record, seconds: float) -> Record:
        record.prefix = self._prefix
        try:
            self.set_timeout(record, seconds)
        except InvalidRequest:
            record.sandbox.close()
            raise
        with self._lock:
            self._records[record.id] = record
        return record

    def _expire(self, record: Record) -> None:
        if record.auto_pause and record.sandbox.alive:
            if not record.sandbox.paused:
                record.sandbox.pause()
        else:
            self.close(record.id)
