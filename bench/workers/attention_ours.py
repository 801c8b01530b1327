"""Our attention by itself: exact paged decode, or the wave index, of one token, layer after layer."""

from __future__ import annotations

import time
from typing import Any

from turns import serve

from statepool.engine.attention.measure import Layers
from statepool.engine.attention.wave import WaveConfig
from statepool.native import kernels


class Kernel:
    """The layers that ``statepool bench attention`` measures, for a duel."""

    def load(
        self, context: int, head_dim: int, heads: int, kv_heads: int, layers: int, threads: int, wave: bool
    ) -> dict[str, Any]:
        """Draw keys and values, and index them with the paper's settings."""
        kernels.set_threads(threads)
        config = WaveConfig.paper(update_segment=256) if wave else None
        self._layers = Layers(context, head_dim, heads, kv_heads, layers, config)
        ratio = self._layers.byte_ratio() if wave else 0.0
        return {"isa": kernels.isa(), "byte_ratio": ratio, "build_seconds": self._layers.build_seconds}

    def run(self, kind: str, steps: int, seed: int) -> dict[str, Any]:
        """``steps`` layers' worth of ``dense`` or ``wave`` decode, a fresh query and the next layer each time."""
        step = self._layers.exact if kind == "dense" else self._layers.wave
        began = time.perf_counter()
        for number in range(seed, seed + steps):
            step(number)
        return {"seconds": time.perf_counter() - began, "tokens": steps}


if __name__ == "__main__":
    serve(Kernel())
