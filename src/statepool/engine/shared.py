"""The engine's own blocks and the shared pool: what is missing here comes from there, what is new here goes there.

Both ways run beside the steps of the engine, so that a slow link costs only those who wait for its bytes: a chunk of a
prompt leaves while the next one is computed, a prefix comes while others get their tokens. Blocks under way are held.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from statepool.engine.attention.wave.shared import SharedClusters
from statepool.engine.runner import Runner
from statepool.kv import BlockPool
from statepool.kv.layout import BLOCK_SIZE
from statepool.kv.pool import Pool

__all__ = ["STALL_SECONDS", "SharedBlocks"]

_AT_ONCE = 2
"""Requests whose blocks are on their way: one in the link, one to follow it."""
STALL_SECONDS = 0.03
"""How long a step waits for what a request has just asked for: a prompt's blocks come within it from this machine, and
the request need not miss the step. What takes longer comes beside the steps."""


@dataclass(slots=True)
class _Arrival:
    """Blocks of ``keys`` behind the ``found`` ones: first the pool says how many it has, then they come."""

    keys: list[bytes]
    tokens: list[int]
    found: list[int]
    coming: Future[int]
    blocks: list[int] = field(default_factory=list)
    rows: list[npt.NDArray[Any]] = field(default_factory=list)


class SharedBlocks:
    """Moves whole blocks between one engine and the pool while the engine computes. Not thread-safe.

    Args:
        inward: the pool, for what comes.
        outward: the pool again, through connections of its own, for what goes.
        own: bookkeeping of the engine's blocks.
        runner: owner of their bytes.
        clusters: what wave attention gives the same pool.
    """

    def __init__(
        self, inward: Pool, outward: Pool, own: BlockPool, runner: Runner, clusters: SharedClusters | None = None
    ) -> None:
        self._clusters = clusters
        self._inward = inward
        self._outward = outward
        self._own = own
        self._runner = runner
        self._loader = ThreadPoolExecutor(1, "kv-in")
        self._saver = ThreadPoolExecutor(1, "kv-out")
        self._fresh: dict[bytes, tuple[int, bytes]] = {}
        self._saves: deque[tuple[Future[int], list[int]]] = deque()
        self._arrivals: dict[str, _Arrival] = {}
        self._came: dict[str, int] = {}

    def ask(self, name: str, keys: Sequence[bytes], tokens: Sequence[int], found: Sequence[int]) -> bool:
        """Begin to bring the blocks of ``keys`` behind the ``found`` ones here, for the index to find.

        False if there is no room for one more request's blocks yet.
        """
        if name in self._arrivals:
            return True
        if len(self._arrivals) == _AT_ONCE:
            return False
        self._own.hold(found)
        missing = keys[len(found) : len(found) + self._own.free]
        coming = self._loader.submit(self._inward.match, missing, keys[0])
        arrival = self._arrivals[name] = _Arrival(list(keys), list(tokens), list(found), coming)
        until = time.monotonic() + STALL_SECONDS
        while name in self._arrivals and wait([arrival.coming], max(until - time.monotonic(), 0)).done:
            self._advance(name)
        return True

    def brings(self, name: str) -> bool:
        """Whether blocks for this request are on their way."""
        return name in self._arrivals

    @property
    def came(self) -> bool:
        """Whether blocks have come that nobody has booked."""
        return bool(self._came)

    def settle(self) -> dict[str, int]:
        """Book what has gone and come by now; the blocks that came, by request."""
        while self._saves and self._saves[0][0].done():
            self._saved()
        for name in list(self._arrivals):
            self._advance(name)
        came, self._came = self._came, {}
        return came

    def wait(self) -> bool:
        """Wait until something has come; False if nothing is on its way."""
        wait([arrival.coming for arrival in self._arrivals.values()], return_when=FIRST_COMPLETED)
        return bool(self._arrivals)

    def note(self, block: int, key: bytes, chain: bytes) -> None:
        """A block has become full and shareable."""
        if key not in self._fresh:
            self._own.hold([block])
            self._fresh[key] = (block, chain)

    def flush(self) -> None:
        """Begin to give the pool what was noted, chain by chain."""
        chains: dict[bytes, list[tuple[bytes, int]]] = {}
        for key, (block, chain) in self._fresh.items():
            chains.setdefault(chain, []).append((key, block))
        self._fresh.clear()
        for chain, entries in chains.items():
            keys, blocks = [key for key, _ in entries], [block for _, block in entries]
            saved = self._saver.submit(self._outward.save, keys, self._runner.rows(blocks), chain)
            self._saves.append((saved, blocks))
        while sum(len(blocks) for _, blocks in self._saves) > self._own.total // 4:
            self._saved()

    def drain(self) -> bool:
        """Give the pool what was noted, to the end; False if there was nothing."""
        found = bool(self._fresh or self._saves)
        self.flush()
        while self._saves:
            self._saved()
        if self._clusters is not None:
            self._clusters.drain()
        return found

    def forget(self) -> None:
        """All KV is lost, and who holds what: what is under way ends for nobody."""
        wait([saved for saved, _ in self._saves] + [arrival.coming for arrival in self._arrivals.values()])
        self._fresh.clear()
        self._saves.clear()
        self._arrivals.clear()
        self._came.clear()

    def close(self) -> None:
        """Wait for what is under way and end all connections."""
        for lane, pool in ((self._loader, self._inward), (self._saver, self._outward)):
            lane.shutdown()
            pool.close()
        if self._clusters is not None:
            self._clusters.close()

    def counts(self) -> dict[str, int]:
        """What came, what went and what failed, as ``EngineStats`` has it."""
        inward, outward = self._inward.counts, self._outward.counts
        return {
            "pool_loaded_blocks": inward.loaded,
            "pool_saved_blocks": outward.saved + inward.saved,
            "pool_corrupt_blocks": inward.corrupt,
            "pool_failures": inward.failures + outward.failures,
        }

    def _saved(self) -> None:
        saved, blocks = self._saves.popleft()
        saved.result()
        self._own.release(blocks)

    def _advance(self, name: str) -> None:
        """One step of an arrival, if it is due: its blocks are asked for, or have come."""
        arrival = self._arrivals[name]
        if not arrival.coming.done():
            return
        count, at = arrival.coming.result(), len(arrival.found)
        if not arrival.blocks and (count := min(count, self._own.free)):
            arrival.blocks = self._own.take(count)
            arrival.rows = self._runner.space(arrival.blocks)
            wanted = arrival.keys[at : at + count]
            arrival.coming = self._loader.submit(self._inward.load, wanted, arrival.rows, arrival.keys[0])
            return
        self._runner.fill(arrival.blocks[:count], arrival.rows[:count])
        for i, block in enumerate(arrival.blocks[:count], at):
            self._own.publish(block, arrival.keys[i], arrival.tokens[i * BLOCK_SIZE : (i + 1) * BLOCK_SIZE])
        self._own.release(arrival.blocks)
        self._own.release(arrival.found)
        del self._arrivals[name]
        self._came[name] = count
