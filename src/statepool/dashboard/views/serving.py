"""The server itself: engines, what their blocks hold, the pool's nodes, and how long clients wait."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from statepool.core.metrics import PREFIX
from statepool.serve.metrics import E2E, ITL, TTFT

if TYPE_CHECKING:
    from statepool.serve.state import GatewayState

__all__ = ["Serving"]


class Serving:
    """Looks at one server from within."""

    def __init__(self, state: GatewayState) -> None:
        self._state = state

    async def look(self) -> dict[str, Any]:
        """Engines and nodes as ``GET /cluster`` has them, counters of all engines, sums of the waiting times.

        Raises:
            Unavailable: loading, draining, or the engine is gone.
        """
        from statepool.serve.status import standing

        model = self._state.ready_model()
        stats = await self._state.engine.refresh_stats()
        latency = {name: self._sums(metric.name) for name, metric in (("ttft", TTFT), ("itl", ITL), ("e2e", E2E))}
        return {
            "model": {"id": model.id, "quant": model.info.quant, "kv_token_bytes": model.info.kv_token_bytes},
            "attention": self._state.config.engine.attention,
            "totals": asdict(stats),
            "latency": latency,
            **await standing(self._state),
        }

    def _sums(self, name: str) -> dict[str, float]:
        registry = self._state.metrics.registry
        parts = {part: registry.get_sample_value(f"{PREFIX}{name}_{part}") for part in ("count", "sum")}
        return {part: value or 0.0 for part, value in parts.items()}
