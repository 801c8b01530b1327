"""Redis through redis-py and hiredis, with a server of its own on a unix socket."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import redis

from bench.store.systems.base import MAIN, Change, Get, Level, Pair, Place, Session, System

_FSYNC = {"power": "always", "process": "everysec"}
_SOCKET = "socket"
_START_SECONDS = 30.0


class RedisSession(Session):
    """One connection, with no pool in between: the leanest that redis-py offers."""

    def __init__(self) -> None:
        self._client = redis.Redis(unix_socket_path=_SOCKET, single_connection_client=True)
        self._client.ping()
        self.put = self._client.set

    def fill(self, table: str, pairs: Sequence[Pair]) -> None:
        self._client.mset({_key(table, key): value for key, value in pairs})

    @contextmanager
    def getter(self, table: str) -> Iterator[Get]:
        yield self._client.get

    def read(self, places: Sequence[Place]) -> list[bytes | None]:
        values: list[bytes | None] = self._client.mget([_key(*place) for place in places])
        return values

    def update(self, places: Sequence[Place], change: Change) -> None:
        """WATCH and MGET in one round trip, MULTI to EXEC in a second; again if a watched key moved."""
        keys = [_key(*place) for place in places]
        while True:
            _, values = self._send([("WATCH", *keys), ("MGET", *keys)])
            writes = [
                ("DEL", _key(*place)) if value is None else ("SET", _key(*place), value)
                for place, value in change(values).items()
            ]
            if not writes:
                self._send([("UNWATCH",)])
                return
            if self._send([("MULTI",), *writes, ("EXEC",)])[-1] is not None:
                return

    def pass_through(self, values: Sequence[bytes]) -> int:
        """One command at a time, as the queue recipes of Redis show it."""
        client, done = self._client, 0
        for value in values:
            client.lpush("queue", value)
        taken = [client.brpoplpush("queue", "taken", timeout=1) for _ in values]
        for value in taken:
            done += client.lrem("taken", 1, value)
        return done

    def close(self) -> None:
        self._client.close()

    def _send(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        connection = self._client.connection
        connection.send_packed_command(connection.pack_commands(commands))
        return [connection.read_response() for _ in commands]


class PipelinedSession(RedisSession):
    """The same queue with one round trip per step for the whole batch."""

    def pass_through(self, values: Sequence[bytes]) -> int:
        self._send([("LPUSH", "queue", *values)])
        taken = self._send([("RPOPLPUSH", "queue", "taken")] * len(values))
        return sum(self._send([("LREM", "taken", 1, value) for value in taken]))


def _key(table: str, key: bytes) -> bytes:
    return key if table == MAIN else table.encode() + b":" + key


class Redis(System):
    """``appendfsync`` always or everysec. The append-only file is not rewritten meanwhile: that only helps Redis."""

    kind: type[RedisSession] = RedisSession

    def open(self, folder: Path, level: Level) -> None:
        program = shutil.which("redis-server")
        if program is None:
            raise FileNotFoundError("redis-server is not on the PATH (make bench-setup ARGS=store says how to get it)")
        os.chdir(folder)  # a socket's path may have 108 bytes, too few for some checkouts; a relative one is short
        options = {
            "port": "0",
            "unixsocket": _SOCKET,
            "save": "",
            "appendonly": "yes",
            "appendfsync": _FSYNC[level],
            "auto-aof-rewrite-percentage": "0",
        }
        command = [program] + [text for name, value in options.items() for text in (f"--{name}", value)]
        self._server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self._wait()

    def _wait(self) -> None:
        end = time.monotonic() + _START_SECONDS
        while True:
            try:
                RedisSession().close()
            except (redis.ConnectionError, redis.exceptions.BusyLoadingError):
                if self._server.poll() is not None or time.monotonic() > end:
                    raise
                time.sleep(0.002)
            else:
                return

    def session(self) -> Session:
        return self.kind()

    def versions(self) -> dict[str, str]:
        client = redis.Redis(unix_socket_path=_SOCKET)
        server = str(client.info("server")["redis_version"])
        client.close()
        return {"Redis": server, "redis-py": version("redis"), "hiredis": version("hiredis")}

    def close(self) -> None:
        self._server.terminate()
        self._server.wait()


class Pipelined(Redis):
    """Redis with a pipelined queue."""

    kind = PipelinedSession
