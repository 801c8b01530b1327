"""Runs the decoder over a batch: three native calls a layer, the middle one a replaceable backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from statepool.engine.attention import Backend
from statepool.engine.attention.full import FullAttention
from statepool.engine.batch import Batch
from statepool.engine.config import Quant
from statepool.engine.loader import Checkpoint, widen
from statepool.engine.models.decoder import DecoderConfig
from statepool.engine.rope import rope_tables
from statepool.kv.tiers import Resident, TieredBlocks

F32 = npt.NDArray[np.float32]

HEAD_ROWS = 64
"""Most rows of logits made at once: bounds memory, not results."""


class Runner(Protocol):
    """A model with its weights, on some device."""

    arithmetic: str
    """Names the bits of its results; KV computed under one name never serves another."""

    @property
    def busy(self) -> bool:
        """Whether something still computes for an earlier ``forward``: reading blocks would wait for it."""

    def forward(self, batch: Batch) -> Any:
        """Hidden states float32 ``[T][hidden]`` after the last layer, on the device; writes the batch's KV.

        May return less, and earlier, if nobody reads them (``batch.read``).
        """
        ...

    def logits(self, hidden: Any) -> F32:
        """Final norm and head: float32 ``[rows][vocab]``."""
        ...

    def normed(self, hidden: Any) -> F32:
        """Final norm only."""
        ...

    def load(self, changed: set[str] | None = None) -> None:
        """(Re)read weights from the checkpoint; ``changed`` limits it to the layers that hold these tensors."""
        ...

    def read_blocks(self, blocks: list[int]) -> npt.NDArray[Any]:
        """A copy of whole blocks ``[n, *block_shape]``, in the layout's bytes."""
        ...

    def write_blocks(self, blocks: list[int], data: npt.NDArray[Any]) -> None:
        """Overwrite whole blocks."""
        ...

    def copy_block(self, source: int, target: int) -> None:
        """Copy one block onto another."""
        ...

    def rows(self, blocks: list[int]) -> list[npt.NDArray[Any]]:
        """An array per block with its bytes: the block itself on a CPU, a copy elsewhere."""
        ...

    def space(self, blocks: list[int]) -> list[npt.NDArray[Any]]:
        """An array per block to put its new bytes into: the block itself on a CPU."""
        ...

    def fill(self, blocks: list[int], rows: list[npt.NDArray[Any]]) -> None:
        """Make what was put into the ``space`` of ``blocks`` their bytes."""
        ...


@runtime_checkable
class Repairable(Protocol):
    """A runner whose KV can be lost without the process."""

    def repair(self) -> None:
        """Make it usable again, with no KV."""
        ...


class CopiedBlocks:
    """For runners whose blocks are not arrays of this process: they come and go as copies."""

    read_blocks: Callable[[list[int]], npt.NDArray[Any]]
    write_blocks: Callable[[list[int], npt.NDArray[Any]], None]

    def rows(self, blocks: list[int]) -> list[npt.NDArray[Any]]:
        """See ``Runner.rows``."""
        return list(self.read_blocks(blocks))

    def space(self, blocks: list[int]) -> list[npt.NDArray[Any]]:
        """See ``Runner.space``."""
        none = self.read_blocks([])
        return list(np.empty((len(blocks), *none.shape[1:]), none.dtype))

    def fill(self, blocks: list[int], rows: list[npt.NDArray[Any]]) -> None:
        """See ``Runner.fill``."""
        if blocks:
            self.write_blocks(blocks, np.stack(rows))


class DecoderRunner:
    """The CPU path, on NumPy arrays.

    Args:
        ops: ``statepool.native.kernels``, or its torch twin ``statepool.engine.ops``; same signatures, same bits.
        decoder: shape of the model.
        checkpoint: its weights; kept open for weight updates.
        quant: arithmetic of the linear layers.
        storage: the KV pool's array, see ``KVLayout.allocate``.
        max_len: positions to prepare rotary tables for.
        span: layers to run here; all by default. Embedding and head are where the first layer is.
    """

    arithmetic = "exact"

    def __init__(
        self,
        ops: Any,
        decoder: DecoderConfig,
        checkpoint: Checkpoint,
        quant: Quant,
        storage: npt.NDArray[Any],
        max_len: int,
        span: range | None = None,
    ) -> None:
        self._ops = ops
        self.decoder = decoder
        self._checkpoint = checkpoint
        self._quant = quant
        self.storage = storage
        self.blocks: Resident | TieredBlocks = Resident(storage)
        self._cos, self._sin = rope_tables(decoder.rope, decoder.head_dim, max_len)
        self._span = range(decoder.layers) if span is None else span
        self._layers: list[Any] = [None] * decoder.layers
        self._embedding: npt.NDArray[Any]
        self._norm: F32
        self._head: Any
        self.backends: list[Backend] = [FullAttention(ops, storage, decoder.head_dim)] * decoder.layers
        self.load()

    @property
    def busy(self) -> bool:
        """See ``Runner.busy``."""
        return False

    def load(self, changed: set[str] | None = None) -> None:
        """See ``Runner.load``."""
        for i in self._span:
            if changed is None or any(name.startswith(f"model.layers.{i}.") for name in changed):
                self._layers[i] = self._layer(f"model.layers.{i}")
        ends = changed is None or not all(name.startswith("model.layers.") for name in changed)
        if self._span.start > 0 or not ends:
            return
        self._norm = self._vector("model.norm.weight")
        self._embedding = self._checkpoint.tensor("model.embed_tokens.weight")
        head = self._embedding if self.decoder.tied else self._checkpoint.tensor("lm_head.weight")
        self._head = self._linear([head], None, "int8" if self._quant == "int4" else self._quant)

    def _layer(self, at: str) -> Any:
        d, tensor = self.decoder, self._checkpoint.tensor

        def linear(names: list[str], biased: bool) -> Any:
            weights = [tensor(f"{at}.{name}.weight") for name in names]
            bias = np.concatenate([self._vector(f"{at}.{name}.bias") for name in names]) if biased else None
            return self._linear(weights, bias, self._quant)

        return self._ops.DecoderLayer(
            qkv=linear([f"self_attn.{x}_proj" for x in "qkv"], d.qkv_bias),
            o=linear(["self_attn.o_proj"], d.o_bias),
            gate_up=linear(["mlp.gate_proj", "mlp.up_proj"], d.mlp_bias),
            down=linear(["mlp.down_proj"], d.mlp_bias),
            input_norm=self._vector(f"{at}.input_layernorm.weight"),
            post_norm=self._vector(f"{at}.post_attention_layernorm.weight"),
            q_norm=self._vector(f"{at}.self_attn.q_norm.weight") if d.qk_norm else None,
            k_norm=self._vector(f"{at}.self_attn.k_norm.weight") if d.qk_norm else None,
            eps=d.eps,
            heads=d.heads,
            kv_heads=d.kv_heads,
            head_dim=d.head_dim,
        )

    def _linear(self, weights: list[npt.NDArray[Any]], bias: F32 | None, mode: Quant) -> Any:
        if len({weight.dtype for weight in weights}) > 1:
            weights = [widen(weight) for weight in weights]
        weight = weights[0] if len(weights) == 1 else np.concatenate(weights)
        return self._ops.Linear(weight, mode, bias)

    def _vector(self, name: str) -> F32:
        return widen(self._checkpoint.tensor(name))

    def forward(self, batch: Batch) -> F32:
        """See ``Runner.forward``"""
        x = np.empty((batch.tokens.size, self.decoder.hidden_size), np.float32)
        self._ops.embed(self._embedding, batch.tokens, x)
        self.layers(x, batch)
        return x

    def layers(self, x: F32, batch: Batch) -> None:
        """Take the hidden states ``x`` ``[T][hidden]`` through the layers that are here, in place."""
        d = self.decoder
        query = np.empty((len(x), d.heads * d.head_dim), np.float32)
        mixed = np.empty_like(query)
        for i in self._span:
            layer = self._layers[i]
            layer.before_attention(x, self._cos, self._sin, batch.positions, batch.slots, self.storage, i, query)
            self.backends[i].attend(i, query, batch, mixed)
            layer.after_attention(x, mixed)

    def logits(self, hidden: F32) -> F32:
        """See ``Runner.logits``."""
        out = np.empty((hidden.shape[0], self.decoder.vocab_size), np.float32)
        self._ops.head(hidden, self._norm, self.decoder.eps, self._head, out)
        return out

    def normed(self, hidden: F32) -> F32:
        """See ``Runner.normed``."""
        out = np.empty_like(hidden)
        self._ops.rms_norm(hidden, self._norm, self.decoder.eps, out)
        return out

    def read_blocks(self, blocks: list[int]) -> npt.NDArray[Any]:
        """See ``Runner.read_blocks``."""
        return self.storage[blocks]

    def write_blocks(self, blocks: list[int], data: npt.NDArray[Any]) -> None:
        """See ``Runner.write_blocks``."""
        self.storage[blocks] = data

    def copy_block(self, source: int, target: int) -> None:
        """See ``Runner.copy_block``."""
        self.storage[target] = self.storage[source]

    def rows(self, blocks: list[int]) -> list[npt.NDArray[Any]]:
        """See ``Runner.rows``."""
        return [self.storage[block] for block in blocks]

    def space(self, blocks: list[int]) -> list[npt.NDArray[Any]]:
        """See ``Runner.space``."""
        return self.rows(blocks)

    def fill(self, blocks: list[int], rows: list[npt.NDArray[Any]]) -> None:
        """See ``Runner.fill``: the rows are the blocks."""
