"""A21 and A22: what overlapping and pipelining gain, by the real runner and real messages over devices that are pauses.

On two cores a model and its attention share one memory, so nothing real can be gained here. The runner, the protocol
and the worker process are the product's; the slices and the kernels sleep for as long as the devices of the paper would
take (times ``SLOWER``), and a proxy gives the link its rate. Bytes are divided by ``THINNER``, and so is the rate.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.beside import run_beside
from bench.machine import LoadWatch
from bench.row import Row
from statepool.engine.attention.remote.runner import Offload, RemoteRunner
from statepool.engine.batch import Batch
from statepool.engine.models.decoder import DecoderConfig
from statepool.kv import KVLayout
from statepool.sim.offload.costs import DEVICES, MODELS, WORKLOADS, Efficiency, Layout, attention_s, estimate, model_s

SLOWER = 300.0
THINNER = 64.0
PARAMETERS = {"llama-65b": (1.0, 2.0, 9.06), "llama3-70b": (1.0, 0.25, 11.5)}
"""Of one layer in units of hidden squared: queries; keys and values; output and MLP."""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of one layer of one batch, slowed: parts of a slice, the attention; and bytes per second of the link."""

    queries: float
    keys: float
    rest: float
    attend: float
    rate: float


class SleepyLayer:
    """A decoder layer that takes its time."""

    def __init__(self, times: Times) -> None:
        self._times = times

    def queries(self, *_: Any) -> None:
        time.sleep(self._times.queries)

    def keys_values(self, *_: Any) -> None:
        time.sleep(self._times.keys)

    def after_attention(self, *_: Any) -> None:
        time.sleep(self._times.rest)


class SleepyOps:
    """What the runner asks of its kernels besides."""

    def embed(self, *_: Any) -> None:
        """Nothing to look up."""


class SleepyRunner(RemoteRunner):
    """The runner of the product over layers that sleep."""

    def __init__(self, times: Times, shape: tuple[int, int, int], layers: int, offload: Offload) -> None:
        self._times = times
        heads, kv_heads, width = shape
        decoder = DecoderConfig("llama", 2, 16, 16, layers, heads, kv_heads, width, 1e-6, 64, True, rope={
            "rope_theta": 1e4, "original_max_position_embeddings": 64})  # fmt: skip
        layout = KVLayout(layers, kv_heads, width, "fp32")
        super().__init__(SleepyOps(), decoder, None, "fp32", layout, 4096, 64, offload, "emulated")  # type: ignore[arg-type]

    def load(self, changed: set[str] | None = None) -> None:
        """Nothing to read."""
        self._layers = [SleepyLayer(self._times)] * self.decoder.layers
        self._embedding = np.zeros((2, 16), np.float32)


@contextmanager
def workers(times: Times) -> Iterator[str]:
    """A slow worker behind a paced link: the address to connect to."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        node, link = str(folder / "node"), str(folder / "link")
        new = times.attend / 64
        run_beside(stack, "bench.lamina.slow_node", node, times.attend - new, new)
        run_beside(stack, "bench.paced", f"unix:{link}", f"unix:{node}", times.rate)
        yield f"unix:{link}"


def step_seconds(
    times: Times, shape: tuple[int, int, int], rows: int, offload: dict[str, Any], layers: int, steps: int
) -> list[float]:
    """Seconds of each of some steps, the first left out."""
    with workers(times) as address:
        runner = SleepyRunner(times, shape, layers, Offload([address], batches=offload.pop("batches", 1), **offload))
        found = []
        for _ in range(steps + 1):
            # Three requests per batch at least, so that a batch can be cut where the runner cuts.
            batch = Batch.build([([1], i % 16, [i]) for i in range(rows)])
            began = time.perf_counter()
            runner.forward(batch)
            found.append(time.perf_counter() - began)
        runner.close()
    return found[1:]


def times_of(name: str, work: str) -> tuple[Times, int, tuple[int, int, int]]:
    """The paper's devices at DOP(2,4): times of a layer, rows of one batch and (heads, kv heads, width), thinned."""
    shape, rate = MODELS[name], Efficiency()
    compute, memory = DEVICES["h100"], DEVICES["h20"]
    found = estimate(shape, WORKLOADS[work], Layout(2, 4, 1), compute, memory, rate)
    assert found is not None
    batch = found.batch / 2
    model = model_s(shape, compute, 2, batch, rate) / shape.layers * SLOWER
    attend = attention_s(shape, memory, 4, batch * WORKLOADS[work].context, rate) / shape.layers * SLOWER
    parts = PARAMETERS[name]
    # Messages carry float32 here and half of that there; the wire's time is what counts.
    line = 2 * compute.network * rate.network / SLOWER / THINNER * 2
    width = 16 * max(1, round(shape.hidden / shape.kv_heads / shape.group / THINNER / 16))
    heads = shape.kv_heads * shape.group
    rows = round(batch * shape.hidden / THINNER / (heads * width))
    share = [part / sum(parts) * model for part in parts]
    return Times(*share, attend, line), rows, (heads, shape.kv_heads, width)


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """The rows that are wanted."""
    for name, rows in (("A21", _overlap), ("A22", _pipelining)):
        if not only or name in only:
            watch = LoadWatch()
            for row in rows(quick):
                row.command, row.load = f"python -m bench lamina --only {name}", watch.stop()
                yield row


def _overlap(quick: bool) -> Iterator[Row]:
    """Devices that sleep are the same every time; what a step takes longer than its best is the machine's doing."""
    cases = (("A21a", "llama-65b", "kimi-ta", 10.0, 13.2), ("A21b", "llama3-70b", "azure-conv", 3.0, 3.5))
    pairs, layers = (1, 4) if quick else (5, 6)
    for name, model, work, target, paper in cases:
        times, rows, shape = times_of(model, work)
        off, on = _best(times, rows, shape, layers, pairs)
        row = Row(name, f"{model}: time between tokens saved by sending queries first", "%", "higher", target)
        row.value = 100 * (1 - on / off)
        row.own = f"{off * 1000 / layers / SLOWER:.3f} to {on * 1000 / layers / SLOWER:.3f} ms a layer"
        row.peer, row.peer_value, row.peer_unit = "the paper", paper, "%"
        row.note = (
            f"emulated devices, {SLOWER:g} times slower, paced link; {work}, {rows} rows of {shape[0] * shape[2]}; "
            f"best of {3 * pairs} steps each, in turn"
        )
        yield row
    ratios = []
    for batches in (1, 2):
        off, on = _best(times, rows, shape, layers, max(1, pairs // 2), batches)
        ratios.append(on / off)
    row = Row("A21c", "never slower: most time with, over without, one batch and two", "x", "lower", 1.01)
    row.value, row.own = max(ratios), ", ".join(f"{each:.3f}" for each in ratios)
    yield row


def _best(
    times: Times, rows: int, shape: tuple[int, int, int], layers: int, pairs: int, batches: int = 1
) -> tuple[float, float]:
    """Seconds of the best step without and with queries that leave first."""
    found: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(pairs):
        for early, seconds in found.items():
            seconds += step_seconds(times, shape, rows, {"early": early, "batches": batches}, layers, 3)
    return min(found[False]), min(found[True])


def _pipelining(quick: bool) -> Iterator[Row]:
    """Steps of n batches against the cycle bound, fill and drain of the pipeline included."""
    layers, shape, rows, line = (12 if quick else 40), (4, 4, 16), 12, 1e9
    wire = statistics.median(step_seconds(Times(0, 0, 0, 0, line), shape, rows, {}, 100, 3)) / 100
    for batches, target in ((2, 95.0), (3, 95.0)):
        # Balanced, as the pool is sized: t_a = t_m / (n - 1). No station ever waits, so every hiccup shows.
        model, attend = 0.12, 0.12 / (batches - 1)
        times = Times(model / 12, model / 6, model * 0.75, attend, line)
        took = min(step_seconds(times, shape, rows, {"batches": batches}, layers, 1 if quick else 2))
        bound = layers * max(batches / (batches - 1) * model, batches * attend, model + attend + wire)
        what = f"{batches} batches on {batches - 1} model replica{'s' if batches > 2 else ''}"
        row = Row(f"A22{'ab'[batches - 2]}", f"{what}: share of the cycle bound", "%", "higher", target)
        row.value, row.own, row.limit = 100 * bound / took, f"{took / layers * 1000:.1f} ms a layer", bound / took
        row.note = (
            f"max(n/(n-1) t_m, n t_a, t_m + t_a + net), net {wire * 1000:.1f} ms; {layers} layers a step, devices that "
            "sleep; filling and draining at every step counted"
        )
        yield row
        serial = min(step_seconds(times, shape, rows, {"batches": 1}, layers, 1))
        row = Row(f"A22{'cd'[batches - 2]}", f"{what}, over one batch at a time", "x", "higher", 1.0)
        row.value, row.own = batches * serial / took, f"{serial / layers * 1000:.1f} ms a layer alone"
        yield row
