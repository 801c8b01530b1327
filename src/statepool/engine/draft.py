"""Lossless speculation with the model itself: the wave index drafts, exact attention verifies.

Drafting a token reads a part of the context; verifying all of them reads it once. The verifying step writes the KV of
every draft anew and chooses with the noise the token would have had anyway, so a result has the bits it has without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from statepool.core.errors import InvalidConfig
from statepool.engine.attention import Backend
from statepool.engine.attention.spec import AttentionSpec
from statepool.engine.attention.wave.config import WaveConfig
from statepool.engine.batch import Batch
from statepool.engine.config import EngineConfig
from statepool.engine.runner import DecoderRunner
from statepool.engine.sequence import Sequence
from statepool.kv import BlockPool


class SparseDrafter:
    """Drafts for sequences that wait for their next token.

    Args:
        runner: the model.
        backends: what its layers run in a draft.
        pool: where drafts get blocks, as long as some are free.
        config: of the index, whose segments end before any draft.
        most: tokens per draft.
    """

    def __init__(
        self, runner: DecoderRunner, backends: list[Backend], pool: BlockPool, config: WaveConfig, most: int
    ) -> None:
        self._runner = runner
        self._backends = backends
        self._pool = pool
        self._config = config
        self._most = most

    @classmethod
    def of(cls, config: EngineConfig, runner: Any, backend: str, pool: BlockPool) -> SparseDrafter | None:
        """The drafter that ``config.speculate`` asks for, if it does.

        Raises:
            InvalidConfig: this engine cannot draft so.
        """
        if not config.speculate.startswith("wave"):
            return None
        spec = AttentionSpec.parse(config.speculate)
        assert isinstance(spec.sparse, WaveConfig)
        if config.attention != "full" or config.kv_budget is not None:
            raise InvalidConfig(
                "speculate wave verifies with full attention over memory: leave out attention and kv_budget",
                param="speculate",
            )
        if spec.sparse.local < config.max_draft:
            raise InvalidConfig(
                f"speculate: local ({spec.sparse.local}) must not be below max_draft ({config.max_draft})",
                param="speculate",
            )
        backends = spec.backends(runner, backend, config.wave_bytes or config.kv_bytes)
        return cls(runner, backends, pool, spec.sparse, config.max_draft)

    def draft(self, sequences: list[Sequence], keys: Callable[[Sequence], list[bytes]]) -> None:
        """Set ``drafts`` of those whose context is long enough to leave something out; ``keys`` gives block keys."""
        live = []
        for sequence in sequences:
            length = len(sequence.tokens)
            room = min(self._most, sequence.limit - length - 1)
            needed = sequence.table.missing(length + room)
            if room <= 0 or not self._config.indexed(length) or needed > self._pool.free:
                continue
            sequence.table.blocks += self._pool.take(needed)
            sequence.sketch.exact = length - 1
            sequence.sketch.keys = None if sequence.stale else keys(sequence)
            live.append((sequence, room))
        for step in range(self._most):
            live = [(sequence, room) for sequence, room in live if step < room]
            if not live:
                return
            parts = []
            for sequence, _ in live:
                at = len(sequence.tokens) - 1 + step
                parts.append((sequence.slice(at, at + 1), at, sequence.table.blocks))
            hidden = self._forward(Batch.build(parts, [s.sketch for s, _ in live]))
            for (sequence, _), line in zip(live, self._runner.logits(hidden), strict=True):
                at = len(sequence.tokens) + step
                chosen = sequence.sampler.sample(line, at, sequence.generated + step, None)
                sequence.drafts.append(chosen.token)

    def _forward(self, batch: Batch) -> Any:
        own, self._runner.backends = self._runner.backends, self._backends
        try:
            return self._runner.forward(batch)
        finally:
            self._runner.backends = own
