"""The model without its attention: runs the slices between the attentions here and the attentions where the KV is.

Per layer and token the queries leave first; while keys and values are computed, the workers already read the context
(Lamina, 4.2.2). Several lanes are under way at once (``lanes``). A request's bits are those of a model in one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from statepool.core.errors import KVLost
from statepool.engine.attention.remote import lanes
from statepool.engine.attention.remote.here import Here
from statepool.engine.attention.remote.link import Link, Traffic
from statepool.engine.attention.remote.placement import ByHeads, BySpan, Errand, Placement, place
from statepool.engine.attention.remote.protocol import Entry, Hello, Publish
from statepool.engine.batch import Batch
from statepool.engine.config import Quant
from statepool.engine.loader import Checkpoint
from statepool.engine.models.decoder import DecoderConfig
from statepool.engine.runner import CopiedBlocks, DecoderRunner
from statepool.kv import BlockPool, KVLayout
from statepool.native import kernels

__all__ = ["Lane", "Offload", "RemoteRunner", "ToldPool"]

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Offload:
    """Where the attention runs.

    Args:
        addresses: of the attention workers.
        split: ``heads``, ``request``, ``sequence`` or ``auto``; see ``placement``.
        batches: lanes under way at once; 1 waits for every attention.
        here: KV heads that stay with the model, whose attention runs while the workers attend for the others.
        early: send queries before keys and values are computed; else behind them, so that nothing overlaps.
        patience: seconds without progress after which a worker counts as lost.
        restart: brings workers of this process back; called before each attempt to reach them again.
    """

    addresses: Sequence[str]
    split: str = "auto"
    batches: int = 2
    here: int = 0
    early: bool = True
    patience: float = 10.0
    reach: float = 20.0
    """Seconds to wait for a worker to come, at the start and after a loss."""
    restart: Callable[[], None] | None = None


class RemoteRunner(CopiedBlocks, DecoderRunner):
    """A ``Runner`` whose KV is on attention workers. See ``DecoderRunner`` for what is not described here.

    Raises:
        KVLost: from everything that needs a worker that is gone; ``repair`` makes it usable again, without KV.
    """

    backend = "native"

    def __init__(
        self,
        ops: Any,
        decoder: DecoderConfig,
        checkpoint: Checkpoint,
        quant: Quant,
        layout: KVLayout,
        blocks: int,
        max_len: int,
        offload: Offload,
        identity: str,
    ) -> None:
        super().__init__(ops, decoder, checkpoint, quant, layout.allocate(0), max_len)
        self._layout = layout
        self._offload = offload
        self._blocks = blocks
        self._identity = identity
        count = len(offload.addresses)
        self.placement: Placement = place(offload.split, count, layout, decoder.heads, blocks, offload.here)
        self._here = self._stay(replace(layout, kv_heads=offload.here)) if offload.here else None
        self.links: list[Link] = []
        self._lanes: list[Lane] = []
        self._fresh: list[Entry] = []
        self.recovered = self._meet()

    # -- the forward pass --------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Any:
        """See ``Runner.forward``."""
        self._tell_published()
        for move in self.placement.moves(batch):
            self.links[move.target].write(move.blocks, self.links[move.source].read(move.blocks))
        d = self.decoder
        x = self._embed(batch.tokens)
        self._lanes = []
        for number, (rows, part) in enumerate(lanes.split(batch, self._offload.batches)):
            errands = self.placement.errands(number, part)
            self._lanes.append(Lane(number, x[rows], part, errands))
            for errand in errands:
                self.links[errand.worker].plan(errand.plan)
            if self._here is not None:
                self._here.plan(errands[0].plan)
        if self._lanes:
            lanes.rotate(len(self._lanes), d.layers + 1, self._slice)
        return x

    def _slice(self, number: int, part: int) -> None:
        """What is between the attentions of layers ``part - 1`` and ``part``."""
        lane = self._lanes[number]
        try:
            if part:
                self._resume(lane, part - 1, self._collect(lane, part - 1))
            if part < self.decoder.layers:
                self._send(lane, part)
        except KVLost:
            self.close()  # nobody shall wait for what will not come
            raise

    def _send(self, lane: Lane, layer: int) -> None:
        d, rows = self.decoder, len(lane.x)
        at = (lane.x, self._cos, self._sin, lane.batch.positions)
        query = np.empty((rows, d.heads, d.head_dim), np.float32)
        kv = np.empty((rows, 2, d.kv_heads, d.head_dim), self._layout.numpy_dtype)
        self._layers[layer].queries(*at, query.reshape(rows, -1))
        if self._offload.early:
            self._send_queries(lane, layer, query)
        self._layers[layer].keys_values(*at, kv)
        if self._here is not None:  # while the workers read; what has its keys may go on in another thread
            self._here.attend(lane.number, layer, query, kv)
        self._send_keys(lane, layer, kv)
        if not self._offload.early:
            self._send_queries(lane, layer, query)

    def _stay(self, layout: KVLayout) -> Here:
        return Here(kernels, layout, self._layout.kv_heads, self._blocks)

    def _embed(self, tokens: npt.NDArray[np.int32]) -> Any:
        """Rows of the residual stream ``[T][hidden]``."""
        x = np.empty((len(tokens), self.decoder.hidden_size), np.float32)
        self._ops.embed(self._embedding, tokens, x)
        return x

    def _resume(self, lane: Lane, layer: int, mixed: F32) -> None:
        """What comes behind the attention of a layer."""
        self._layers[layer].after_attention(lane.x, mixed)

    def _send_keys(self, lane: Lane, layer: int, kv: npt.NDArray[Any]) -> None:
        for errand in lane.errands:
            if len(errand.stored):
                self.links[errand.worker].keys(lane.number, layer, self.placement.keys_of(errand, kv))

    def _send_queries(self, lane: Lane, layer: int, query: F32) -> None:
        for errand in lane.errands:
            self.links[errand.worker].query(lane.number, layer, self.placement.query_of(errand, query))

    def _collect(self, lane: Lane, layer: int) -> F32:
        d = self.decoder
        mixed = np.empty((len(lane.x), d.heads * d.head_dim), np.float32)
        answers: list[F32] = []
        for errand in lane.errands:
            message = self.links[errand.worker].out(lane.number, layer)
            answers.append(np.frombuffer(message.body, np.float32))
        self.placement.gather(lane.errands, answers, kernels, mixed)
        if self._here is not None:
            self._here.put(lane.number, mixed)
        return mixed

    # -- blocks ------------------------------------------------------------------------------------

    def read_blocks(self, blocks: list[int]) -> npt.NDArray[Any]:
        """See ``Runner.read_blocks``."""
        found = np.zeros((len(blocks), *self._layout.block_shape), self._layout.numpy_dtype)
        places = {block: i for i, block in enumerate(blocks)}
        for worker, mine in enumerate(self.placement.owners(blocks)):
            if mine:
                part = self.links[worker].read(mine)
                at = [places[block] for block in mine]
                if isinstance(self.placement, ByHeads):
                    found[:, :, :, self.placement.heads_of(worker)] = part
                else:
                    found[at] = part
        if self._here is not None:
            found[:, :, :, : self._offload.here] = self._here.read(blocks)
        return found

    def write_blocks(self, blocks: list[int], data: npt.NDArray[Any]) -> None:
        """See ``Runner.write_blocks``."""
        if blocks:
            for worker in self.placement.homes(blocks):
                self.links[worker].write(blocks, self.placement.share_of(worker, data))
            if self._here is not None:
                self._here.write(blocks, data)

    def copy_block(self, source: int, target: int) -> None:
        """See ``Runner.copy_block``."""
        self.write_blocks([target], self.read_blocks([source]))

    # -- workers that come and go ------------------------------------------------------------------

    def note(self, entry: Entry) -> None:
        """A block has become full: the workers are told with the next step."""
        self._fresh.append(entry)

    def _tell_published(self) -> None:
        """Let the workers know which of their blocks the next model worker may want."""
        fresh, self._fresh = self._fresh, []
        if fresh:
            for link in self.links:
                link.tell(Publish(fresh))

    def repair(self) -> None:
        """Reach all workers again after one was lost; no KV is left.

        Raises:
            KVLost: one does not come back.
        """
        self._fresh.clear()
        if isinstance(self.placement, BySpan):
            self.placement.forget()
        self._meet(fresh=True)

    def traffic(self) -> list[Traffic]:
        """Bytes so far, by worker."""
        return [link.traffic for link in self.links]

    def close(self) -> None:
        """End the connections; the workers keep their blocks for the next model worker."""
        for link in self.links:
            link.close()

    def _meet(self, fresh: bool = False) -> list[Entry]:
        """Connect to every worker; the full blocks of an earlier model worker that can still be used."""
        self.close()
        kind, offload = type(self.placement).__name__, self._offload
        placed = f"{self._identity}/{kind}/{offload.split}/{offload.here}/{len(offload.addresses)}"
        fresh = fresh or self._here is not None  # the heads kept here ended with the model worker before this one
        self.links, held = [], []
        for number, (address, share) in enumerate(zip(self._offload.addresses, self.placement.shares, strict=True)):
            hello = Hello(
                f"{placed}/{number}", share.layers, share.kv_heads, share.head_dim, share.dtype, self._blocks, fresh
            )
            link = Link(address, hello, self._offload.patience)
            self.links.append(link)
            held.append({entry.block: entry for entry in link.open(self._offload.reach, self._offload.restart)})
        if isinstance(self.placement, BySpan):
            found: dict[int, Entry] = {}
            for worker, entries in enumerate(held):
                mine = [entry for block, entry in entries.items() if block not in found]
                self.placement.found(worker, [entry.block for entry in mine])
                found |= {entry.block: entry for entry in mine}
            return list(found.values())
        return [entry for block, entry in held[0].items() if all(other.get(block) == entry for other in held[1:])]


@dataclass(slots=True)
class Lane:
    """One batch under way: its rows of the residual stream, and what the workers do for it."""

    number: int
    x: Any
    batch: Batch
    errands: list[Errand]


class ToldPool(BlockPool):
    """A ``BlockPool`` whose full blocks the attention workers know by key, so that they outlive the model worker."""

    def __init__(self, total: int, runner: RemoteRunner) -> None:
        super().__init__(total)
        self._runner = runner
        self.recover([(entry.block, entry.key, entry.tokens) for entry in runner.recovered])

    def publish(self, block: int, key: bytes, tokens: Sequence[int]) -> None:
        """See ``BlockPool.publish``."""
        super().publish(block, key, tokens)
        if self.key_of(block) == key:
            self._runner.note(Entry(block, key, list(tokens)))
