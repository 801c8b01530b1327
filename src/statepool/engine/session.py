"""Sessions: the KV of a conversation, kept by name between requests.

A session is resident (it holds blocks of the pool) or parked (its bytes lie outside the pool, which then
serves others). Whoever continues it gets every computed token back, parked or not.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from statepool.core.errors import Corruption, NotFound
from statepool.engine.runner import Runner
from statepool.kv import BlockPool
from statepool.kv.layout import BLOCK_SIZE


@dataclass(slots=True)
class Session:
    """Tokens whose KV is kept, and where it is. ``parked`` is ``[blocks, *block_shape]`` or None."""

    tokens: tuple[int, ...]
    root: bytes
    blocks: list[int]
    parked: npt.NDArray[Any] | None = None


class SessionStore:
    """All sessions of one engine, least recently used first."""

    def __init__(self, pool: BlockPool, runner: Runner) -> None:
        self._pool = pool
        self._runner = runner
        self._sessions: OrderedDict[tuple[str, str], Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def parked_bytes(self) -> int:
        """Bytes of all parked sessions."""
        return sum(s.parked.nbytes for s in self._sessions.values() if s.parked is not None)

    def names(self, salt: str) -> list[str]:
        """Sessions of one tenant."""
        return [name for owner, name in self._sessions if owner == salt]

    def get(self, salt: str, name: str) -> Session:
        """A session by name.

        Raises:
            NotFound: this tenant has no session of that name.
        """
        session = self._sessions.get((salt, name))
        if session is None:
            raise NotFound(f"session {name!r} does not exist", param="session")
        return session

    def keep(self, salt: str, name: str, tokens: Sequence[int], root: bytes, blocks: list[int]) -> None:
        """Store a finished sequence under ``name``; its hold on ``blocks`` passes to the session."""
        if (salt, name) in self._sessions:
            self.drop(salt, name)
        used = -(-len(tokens) // BLOCK_SIZE)
        self._pool.release(blocks[used:])
        self._sessions[salt, name] = Session(tuple(tokens), root, blocks[:used])

    def peek(self, salt: str, name: str, prompt: Sequence[int], root: bytes) -> tuple[int, int, int] | None:
        """What ``claim`` would give: (tokens, blocks, free blocks it would use up), or None."""
        session = self._sessions.get((salt, name))
        if session is None or session.root != root:
            return None
        common = _common(session.tokens, prompt)
        if common == 0:
            return None
        kept = -(-common // BLOCK_SIZE)
        return common, kept, kept if session.parked is not None else int(self._must_copy(session, common))

    def claim(self, salt: str, name: str, prompt: Sequence[int]) -> tuple[list[int], int]:
        """Take a session's blocks for a prompt that continues it: (blocks, tokens they hold).

        The session is gone until the sequence ends and is kept again. A last block that others
        also use is copied, since the sequence will write behind its tokens. ``peek`` says beforehand
        how many free blocks this needs.
        """
        session = self.get(salt, name)
        common = _common(session.tokens, prompt)
        kept = -(-common // BLOCK_SIZE)
        if session.parked is not None:
            blocks = self._pool.take(kept)
            self._runner.write_blocks(blocks, session.parked[:kept])
        else:
            blocks = session.blocks
            if self._must_copy(session, common):
                copy = self._pool.take(1)[0]
                self._runner.copy_block(blocks[kept - 1], copy)
                self._pool.release([blocks[kept - 1]])
                blocks[kept - 1] = copy
            self._pool.release(blocks[kept:])
        del self._sessions[salt, name]
        return blocks[:kept], common

    def fork(self, salt: str, name: str, new: str) -> None:
        """Let ``new`` start where ``name`` is. Blocks are shared until one of them writes."""
        session = self.get(salt, name)
        if (salt, new) in self._sessions:
            self.drop(salt, new)
        self._pool.hold(session.blocks)
        self._sessions[salt, new] = Session(session.tokens, session.root, list(session.blocks), session.parked)

    def drop(self, salt: str, name: str) -> None:
        """Forget a session and free its blocks."""
        session = self.get(salt, name)
        self._pool.release(session.blocks)
        del self._sessions[salt, name]

    def park(self, salt: str, name: str) -> None:
        """Move a session's bytes out of the pool."""
        self._park(self.get(salt, name))

    def park_oldest(self) -> bool:
        """Park the least recently used resident session; False if there is none."""
        for session in self._sessions.values():
            if session.parked is None and session.blocks:
                self._park(session)
                return True
        return False

    def give(self, salt: str, name: str) -> bytes:
        """Take a session out as bytes, for the store of another engine."""
        self.park(salt, name)
        session = self._sessions.pop((salt, name))
        assert session.parked is not None
        kv = session.parked
        state = (session.tokens, session.root, kv.shape, kv.dtype.str, kv.tobytes())
        body = msgspec.msgpack.encode(state)
        return body + blake2b(body, digest_size=16).digest()

    def take(self, salt: str, name: str, data: bytes) -> None:
        """Keep a session that another engine gave; one of other weights or layout is never claimed.

        Raises:
            Corruption: the bytes are damaged.
        """
        body, checksum = data[:-16], data[-16:]
        if blake2b(body, digest_size=16).digest() != checksum:
            raise Corruption("the session is damaged; its KV is computed again from its tokens")
        tokens, root, shape, dtype, raw = msgspec.msgpack.decode(body)
        parked = np.frombuffer(raw, np.dtype(dtype)).reshape(shape)
        self._sessions[salt, name] = Session(tuple(tokens), root, [], parked)

    def clear(self) -> None:
        """Drop every session (their KV belongs to older weights)."""
        for salt, name in list(self._sessions):
            self.drop(salt, name)

    def _park(self, session: Session) -> None:
        if session.parked is None:
            session.parked = self._runner.read_blocks(session.blocks)
            self._pool.release(session.blocks)
            session.blocks = []

    def _must_copy(self, session: Session, common: int) -> bool:
        """Whether the block behind ``common`` tokens will be written although others may read it."""
        if session.parked is not None or common % BLOCK_SIZE == 0:
            return False
        last = session.blocks[common // BLOCK_SIZE]
        return self._pool.references(last) > 1 or self._pool.is_published(last)


def _common(kept: Sequence[int], prompt: Sequence[int]) -> int:
    end = min(len(kept), len(prompt))
    if tuple(kept[:end]) == tuple(prompt[:end]):  # nearly always, and asked at every step that somebody waits
        return end
    return next(i for i in range(end) if kept[i] != prompt[i])
