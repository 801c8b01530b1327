"""An attention worker whose kernels take a given time.

``python -m bench.lamina.slow_node LISTEN OLD_SECONDS NEW_SECONDS``: for the context, and for the new token. Its
protocol, its buffers and its bytes are those of the real one; only the arithmetic is a pause.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import numpy as np

from statepool.engine.attention.remote.node import AttentionNode
from statepool.engine.attention.remote.share import Share
from statepool.kv import KVLayout


class SlowShare(Share):
    """Attention over the context takes ``old`` seconds, over the new token ``new``."""

    def __init__(self, layout: KVLayout, old: float, new: float) -> None:
        super().__init__(None, layout, 1)
        self._old, self._new = old, new
        self._rows: dict[int, Any] = {}

    def begin(self, lane: int, layer: int, query: Any) -> bool:
        time.sleep(self._old)
        self._rows[lane] = np.zeros((len(query), query.shape[1] * query.shape[2]), np.float32)
        return True

    def waits(self, lane: int) -> bool:
        return lane in self._rows

    def append(self, lane: int, layer: int, kv: Any) -> Any:
        return np.empty(0, np.int32)

    def end(self, lane: int) -> Any:
        time.sleep(self._new)
        return self._rows.pop(lane)


class SlowNode(AttentionNode):
    """Holds such a share."""

    def __init__(self, address: str, old: float, new: float) -> None:
        super().__init__(address)
        self._times = (old, new)

    def hold(self, layout: KVLayout, blocks: int) -> Share:
        return SlowShare(layout, *self._times)


if __name__ == "__main__":
    parent = os.getppid()
    node = SlowNode(f"unix:{sys.argv[1]}", float(sys.argv[2]), float(sys.argv[3]))
    node.start()
    print("ready", flush=True)
    while os.getppid() == parent:
        time.sleep(0.2)
