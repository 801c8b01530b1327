"""Clusters that one engine found, for all engines over one KV pool: a prompt from there is not clustered again.

What travels is the cluster of each token, two bytes per token and head: keys and values come as blocks anyway, and with
the labels everything else of a segment is computed from them, to the bit. The labels of a segment in all layers fill as
many blocks of the pool as they need.
"""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from statepool.engine.attention.wave.config import WaveConfig
from statepool.kv.keys import KEY_BYTES
from statepool.kv.pool import Pool

U16 = npt.NDArray[np.uint16]

_HELD = 16
"""Segments whose layers are being asked for or built."""
_FORMAT = b"wave labels 1"


@dataclass(slots=True)
class _Held:
    keys: list[bytes]
    rows: npt.NDArray[np.uint8]
    labels: U16
    came: bool
    built: set[int] = field(default_factory=set)


class SharedClusters:
    """Labels of segments by way of the pool. Not thread-safe.

    A question waits for the pool's answer, which is short beside clustering; a node that does not answer is left alone
    for a while, as for blocks.

    Args:
        inward: the pool, for what comes.
        outward: the pool again, through connections of its own, for what goes.
        block_bytes: of the pool.
        layers: those that have segments.
        config: settings of the segments.
    """

    def __init__(self, inward: Pool, outward: Pool, block_bytes: int, layers: range, config: WaveConfig) -> None:
        self._inward, self._outward = inward, outward
        self._block_bytes = block_bytes
        self._layers = layers
        self._name = _FORMAT + repr(config).encode()
        self._held: OrderedDict[bytes, _Held] = OrderedDict()
        self._saver = ThreadPoolExecutor(1, "wave-out")
        self._saves: list[Future[int]] = []
        self.found = 0
        """Segments, each in all layers, that came from the pool."""

    def get(self, key: bytes, layer: int, shape: tuple[int, int], clusters: int) -> U16 | None:
        """Labels ``[heads][tokens]`` of a segment, or None if the pool does not have them.

        Args:
            key: of the segment's last block of the KV pool, and whatever else its bytes depend on.
            layer: of the model.
            shape: (heads, tokens behind the pinned ones).
            clusters: no label is as large.
        """
        held = self._held.get(key)
        if held is None:
            held = self._held[key] = self._ask(key, shape)
            if len(self._held) > _HELD:
                self._held.popitem(last=False)
        labels = held.labels[layer - self._layers.start]
        return labels if held.came and labels.max() < clusters else None

    def put(self, key: bytes, layer: int, labels: U16) -> None:
        """Labels that were found here; with those of the last layer all go to the pool."""
        held = self._held.get(key)
        if held is None or held.came:
            return
        held.labels[layer - self._layers.start] = labels
        held.built.add(layer)
        if len(held.built) == len(self._layers):
            self._saves = [save for save in self._saves if not save.done()]
            self._saves.append(self._saver.submit(self._outward.save, held.keys, list(held.rows)))
            del self._held[key]

    def drain(self) -> None:
        """Wait until the pool has what was given."""
        for save in self._saves:
            save.result()

    def close(self) -> None:
        """Wait for what is under way and end all connections."""
        self._saver.shutdown()
        self._inward.close()
        self._outward.close()

    def _ask(self, key: bytes, shape: tuple[int, int]) -> _Held:
        size = len(self._layers) * shape[0] * shape[1]
        count = -(-2 * size // self._block_bytes)
        rows = np.zeros((count, self._block_bytes), np.uint8)
        name = blake2b(self._name + key).digest()
        keys = [blake2b(name + i.to_bytes(8, "little"), digest_size=KEY_BYTES).digest() for i in range(count)]
        came = self._inward.load(keys, list(rows)) == count
        self.found += came
        labels = rows.reshape(-1)[: 2 * size].view(np.uint16).reshape(len(self._layers), *shape)
        return _Held(keys, rows, labels, came)
