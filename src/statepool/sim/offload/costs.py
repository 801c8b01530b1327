"""How fast a model decodes on one kind of device, and on two with its attentions apart: a roofline in closed form.

Decoding reads all weights and all KV once per step. The weights are read once for a whole batch, so larger batches cost
little until the arithmetic is the limit; KV is read per request, whatever the batch. So memory decides the batch, and
the batch the throughput: devices with much memory for their price pay for the KV of a larger batch (Lamina, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeVar

from statepool.core.errors import InvalidConfig
from statepool.engine.loader import read_json
from statepool.engine.models import parse_config

__all__ = [
    "DEVICES",
    "MODELS",
    "WORKLOADS",
    "Device",
    "Efficiency",
    "Estimate",
    "Layout",
    "Shape",
    "Workload",
    "attention_s",
    "estimate",
    "kv_room",
    "model_s",
    "named",
    "network_s",
    "shape_of",
]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator: bf16 ``flops`` per second, bytes of ``memory``, bytes per second to it and to the network."""

    name: str
    price: float
    """Dollars per hour."""
    flops: float
    memory: float
    bandwidth: float
    network: float = 50e9


@dataclass(frozen=True, slots=True)
class Shape:
    """What matters of a decoder: bytes of its weights, layers, hidden size, KV heads, and query heads per KV head."""

    name: str
    weights: float
    layers: int
    hidden: int
    kv_heads: int
    group: int
    element: int = 2
    """Bytes of a number, in weights, KV and messages."""

    @property
    def kv_token(self) -> float:
        """Bytes of one token's keys and values."""
        return 2 * self.layers * self.hidden / self.group * self.element

    def wire_bytes(self, batch: float) -> float:
        """Bytes between model and attention per step: q, k, v and the result (Lamina, 3.1)."""
        return (2 + 2 / self.group) * self.element * self.hidden * batch * self.layers


@dataclass(frozen=True, slots=True)
class Workload:
    """Mean tokens of prompts and of answers."""

    name: str
    prompt: float
    output: float

    @property
    def context(self) -> float:
        """Tokens a request has in memory, on average over its decoding."""
        return self.prompt + self.output / 2


# Prices and figures as Lamina has them (2405.01814 v2, tables 2 and 5); the H20's price is the paper's estimate.
DEVICES: Mapping[str, Device] = MappingProxyType(
    {
        "h100": Device("h100", 11.06, 989e12, 80e9, 3.35e12),
        "h20": Device("h20", 4.63, 148e12, 96e9, 4.0e12),
        "tpu-v6e": Device("tpu-v6e", 2.70, 918e12, 32e9, 1.64e12),
        # The machine around an accelerator, which comes with it: eight channels of DDR5-4800, PCIe 5 x16. Ours.
        "host": Device("host", 0.0, 4e12, 512e9, 0.307e12, 55e9),
    }
)
MODELS: Mapping[str, Shape] = MappingProxyType(
    {
        "llama-33b": Shape("llama-33b", 64.7e9, 60, 6656, 52, 1),
        "llama-65b": Shape("llama-65b", 130.1e9, 80, 8192, 64, 1),
        "llama3-70b": Shape("llama3-70b", 137.5e9, 80, 8192, 8, 8),
    }
)
WORKLOADS: Mapping[str, Workload] = MappingProxyType(
    {
        "azure-conv": Workload("azure-conv", 1154.7, 211.1),
        "azure-code": Workload("azure-code", 2047.8, 27.9),
        "kimi-conv": Workload("kimi-conv", 12035.1, 342.6),
        "kimi-ta": Workload("kimi-ta", 8560.0, 182.1),
    }
)


@dataclass(frozen=True, slots=True)
class Layout:
    """``compute`` devices with the weights and ``memory`` devices with the KV; no memory devices: both on the first.

    ``batches`` are under way at once, on ``batches - 1`` replicas of the model (one, if there is one batch). ``here``
    KV heads stay on the compute devices, which attend for them while the memory devices do for the others.
    """

    compute: int
    memory: int = 0
    batches: int = 1
    here: int = 0

    @property
    def replicas(self) -> int:
        """How often the weights are there."""
        return max(self.batches - 1, 1)

    @property
    def text(self) -> str:
        """For people."""
        if not self.memory:
            return f"{self.compute} together"
        stay = f", {self.here} here" if self.here else ""
        return f"DOP({self.compute},{self.memory}), {self.batches} batch{'es' if self.batches > 1 else ''}{stay}"


@dataclass(frozen=True, slots=True)
class Efficiency:
    """How much of the datasheet a good implementation gets, and what it needs for itself. All can be edited."""

    flops: float = 0.7
    bandwidth: float = 0.8
    network: float = 0.914
    """Of the line rate, as measured for messages that devices post themselves (Lamina, figure 12)."""
    memory: float = 0.9
    workspace: float = 2e9
    """Bytes per compute device for activations, graphs and buffers of collectives."""
    latency: float = 33e-6
    """Seconds of a round trip between the two sides, per layer."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a layout does.

    Attributes:
        batch: requests that fit.
        model_s, attention_s, network_s: of one of its batches, all layers.
        here_s: of the attentions on the compute devices, for the heads that stay there.
        step_s: seconds between two tokens of a request.
        tokens_s: over all requests.
        dollars: per hour.
        partition: how the KV is divided among the memory devices.
        bound: what a step waits for.
    """

    layout: Layout
    batch: float
    model_s: float
    attention_s: float
    network_s: float
    here_s: float
    step_s: float
    tokens_s: float
    dollars: float
    partition: str
    bound: Literal["memory", "model", "attention", "round"]

    @property
    def tokens_dollar(self) -> float:
        """Tokens for a dollar."""
        return self.tokens_s * 3600 / self.dollars


def model_s(shape: Shape, device: Device, count: float, batch: float, rate: Efficiency) -> float:
    """Seconds of everything but the attentions, for one token of each request of a batch."""
    reading = shape.weights / (device.bandwidth * rate.bandwidth)
    computing = 2 * shape.weights / shape.element * batch / (device.flops * rate.flops)
    return max(reading, computing) / count


def attention_s(shape: Shape, device: Device, count: float, tokens: float, rate: Efficiency) -> float:
    """Seconds to read the KV of ``tokens`` tokens, or to compute with it where that takes longer."""
    reading = tokens * shape.kv_token / (device.bandwidth * rate.bandwidth)
    computing = 4 * tokens * shape.hidden * shape.layers / (device.flops * rate.flops)
    return max(reading, computing) / count


def network_s(shape: Shape, compute: Device, memory: Device, layout: Layout, batch: float, rate: Efficiency) -> float:
    """Seconds of a batch's messages, over as many links as both sides have."""
    line = min(layout.compute / layout.replicas * compute.network, layout.memory * memory.network)
    away = 1 - layout.here / shape.kv_heads
    return away * shape.wire_bytes(batch) / (line * rate.network) + shape.layers * rate.latency


def kv_room(shape: Shape, layout: Layout, compute: Device, memory: Device, rate: Efficiency) -> float:
    """Bytes of KV that ``layout`` holds; 0 where not even the weights fit."""
    room = layout.compute * (compute.memory * rate.memory - rate.workspace) - layout.replicas * shape.weights
    if room < 0 or not layout.memory:
        return max(room, 0.0)
    stay = layout.here / shape.kv_heads
    held = layout.memory * memory.memory * rate.memory / (1 - stay)
    return min(held, room / stay) if stay else held


def estimate(
    shape: Shape,
    work: Workload,
    layout: Layout,
    compute: Device,
    memory: Device,
    rate: Efficiency | None = None,
    slo_tbt: float = math.inf,
) -> Estimate | None:
    """What ``layout`` does with ``work``; None if the weights or a single request do not fit.

    The batch is what fits in memory, or the largest whose steps keep to ``slo_tbt`` seconds.
    """
    rate = rate or Efficiency()
    most = kv_room(shape, layout, compute, memory, rate) / (shape.kv_token * work.context)
    if most < max(layout.batches, 1):
        return None
    found = _with_batch(shape, work, layout, compute, memory, rate, most)
    if found.step_s <= slo_tbt:
        return found
    low, high = float(layout.batches), most
    if _with_batch(shape, work, layout, compute, memory, rate, low).step_s > slo_tbt:
        return None
    for _ in range(40):
        middle = (low + high) / 2
        fits = _with_batch(shape, work, layout, compute, memory, rate, middle).step_s <= slo_tbt
        low, high = (middle, high) if fits else (low, middle)
    return _with_batch(shape, work, layout, compute, memory, rate, low)


def _with_batch(
    shape: Shape, work: Workload, layout: Layout, compute: Device, memory: Device, rate: Efficiency, batch: float
) -> Estimate:
    each, n, replicas = batch / layout.batches, layout.batches, layout.replicas
    slices = model_s(shape, compute, layout.compute / replicas, each, rate)
    here = 0.0
    if not layout.memory:
        attend = attention_s(shape, compute, layout.compute, batch * work.context, rate)
        step, wire, partition = slices + attend, 0.0, "–"
    else:
        stay = layout.here / shape.kv_heads
        here = attention_s(shape, compute, layout.compute / replicas, stay * each * work.context, rate)
        attend = attention_s(shape, memory, layout.memory, (1 - stay) * each * work.context, rate)
        wire = network_s(shape, compute, memory, layout, each, rate)
        step = max(n / replicas * (slices + here), n * attend, slices + max(here, attend + wire))
        partition = "heads" if (shape.kv_heads - layout.here) % layout.memory == 0 else "sequence"
    bound: Literal["memory", "model", "attention", "round"] = "memory"
    if layout.memory:
        model = n / replicas * (slices + here)
        bound = "model" if step == model else "attention" if step == n * attend else "round"
    dollars = layout.compute * compute.price + layout.memory * memory.price
    return Estimate(layout, batch, slices, attend, wire, here, step, batch / step, dollars, partition, bound)


def shape_of(path: Path) -> Shape:
    """The shape of a checkpoint in a folder, from its ``config.json``.

    Raises:
        InvalidCheckpoint: it is missing, or of no family the engine knows.
    """
    config = parse_config(read_json(path / "config.json"))
    weights = 2.0 * sum(math.prod(shape) for _, shape in config.tensors())
    # Lamina's formulas are for heads as wide as hidden / heads; others count as if they were.
    hidden = config.heads * config.head_dim
    return Shape(path.name, weights, config.layers, hidden, config.kv_heads, config.heads // config.kv_heads)


def named(kind: str, name: str, known: Mapping[str, T]) -> T:
    """An entry of a table.

    Raises:
        InvalidConfig: it has none of that name.
    """
    if name not in known:
        raise InvalidConfig(f"{kind} must be one of {', '.join(known)}, got {name!r}", param=kind)
    return known[name]
