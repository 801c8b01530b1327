"""The engine's own blocks and the shared pool: what is missing here comes from there, what is new here goes there."""

from __future__ import annotations

from collections.abc import Sequence

from statepool.engine.runner import Runner
from statepool.kv import BlockPool
from statepool.kv.layout import BLOCK_SIZE
from statepool.kv.pool import Pool

__all__ = ["SharedBlocks"]


class SharedBlocks:
    """Moves whole blocks between one engine and the pool, between two steps of the engine.

    Args:
        remote: the pool.
        own: bookkeeping of the engine's blocks.
        runner: owner of their bytes.
    """

    def __init__(self, remote: Pool, own: BlockPool, runner: Runner) -> None:
        self.remote = remote
        self._own = own
        self._runner = runner
        self._fresh: dict[bytes, tuple[int, bytes]] = {}

    def fetch(self, keys: Sequence[bytes], tokens: Sequence[int], found: Sequence[int]) -> int:
        """Bring the blocks of ``keys`` behind the ``found`` ones here, for the index to find; how many came."""
        self._own.hold(found)
        missing = keys[len(found) : len(found) + self._own.free]
        # A question costs a few bytes, room for an answer may cost blocks that others would have found.
        count = self.remote.match(missing, keys[0]) if missing else 0
        blocks = self._own.take(count)
        rows = self._runner.space(blocks)
        came = self.remote.load(missing[:count], rows, keys[0]) if count else 0
        self._runner.fill(blocks[:came], rows[:came])
        for i, block in enumerate(blocks[:came], len(found)):
            self._own.publish(block, keys[i], tokens[i * BLOCK_SIZE : (i + 1) * BLOCK_SIZE])
        self._own.release(blocks)
        self._own.release(found)
        return came

    def note(self, block: int, key: bytes, chain: bytes) -> None:
        """A block has become full and shareable. It must stay what it is until ``flush``."""
        self._fresh[key] = (block, chain)

    def forget(self) -> None:
        """What was noted is lost."""
        self._fresh.clear()

    def flush(self) -> None:
        """Give the pool what was noted, chain by chain."""
        chains: dict[bytes, list[tuple[bytes, int]]] = {}
        for key, (block, chain) in self._fresh.items():
            chains.setdefault(chain, []).append((key, block))
        self._fresh.clear()
        for chain, entries in chains.items():
            rows = self._runner.rows([block for _, block in entries])
            self.remote.save([key for key, _ in entries], rows, chain)

    def counts(self) -> dict[str, int]:
        """What came, what went and what failed, as ``EngineStats`` has it."""
        counts = self.remote.counts
        return {
            "pool_loaded_blocks": counts.loaded,
            "pool_saved_blocks": counts.saved,
            "pool_corrupt_blocks": counts.corrupt,
            "pool_failures": counts.failures,
        }
