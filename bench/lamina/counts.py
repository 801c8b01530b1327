"""A19 and A20: what is exact, counted. Slices and faults by the suite's own tests, bytes by the runner's counters."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import proofs
from bench.duel import ROOT
from bench.machine import LoadWatch
from bench.proofs import Proof
from bench.row import Row

_SLICES = "tests/lamina/test_slicing.py::test_families_are_cut_at_the_minimum_and_stay_the_same_model"
PROOFS = (
    Proof("A19a", "families whose slices are minimum cuts (networkx) and the same model", "families", "higher", 6,
          "passed", (_SLICES,)),
    Proof("A19b", "engines with attention workers that differ in a bit from one process", "of all", "lower", 0,
          "failed", ("tests/lamina/test_remote.py",)),
    Proof("A19c", "kills of attention and model workers that cost a token", "of all", "lower", 0,
          "failed", ("tests/lamina/test_faults.py", "tests/lamina/test_serve.py")),
)  # fmt: skip


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """The rows that are wanted."""
    yield from proofs.run(PROOFS, only)
    if not only or "A20" in only:
        watch = LoadWatch()
        for row in _bytes(quick):
            row.command, row.load = "python -m bench lamina --only A20", watch.stop()
            yield row


def _bytes(quick: bool) -> Iterator[Row]:
    """Bytes of decode steps against (2 + 2/G) e d B L, at the shape of a 0.5B model."""
    sys.path.insert(0, str(ROOT))
    from tests.small_models import write_model

    from statepool.engine.config import EngineConfig
    from statepool.engine.engine import Engine
    from statepool.engine.request import Request, SamplingParams

    shape = {
        "hidden_size": 896,
        "intermediate_size": 256,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "num_hidden_layers": 4 if quick else 24,
        "max_position_embeddings": 1024,
    }
    batch, steps = 16, 8
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / "model", **shape)
        for name, quant, element in (("A20a", "fp32", 4), ("A20b", "int8", 4)):
            engine = Engine(
                EngineConfig(model=str(model), quant=quant, kv_bytes=256 << 20, threads=1, attention_workers="2")
            )
            for i in range(batch):
                prompt = tuple((7 * i + j) % 250 + 3 for j in range(16 + i))
                engine.submit(Request(f"r{i}", prompt, SamplingParams(max_tokens=64, ignore_eos=True)))
            while engine.stats().generated_tokens < batch:  # all prompts fit one step
                engine.step()
            traffic = engine.runner.traffic()  # type: ignore[attr-defined]
            before, made = sum(t.total for t in traffic), engine.stats().forward_tokens
            for _ in range(steps):
                engine.step()
            tokens = engine.stats().forward_tokens - made
            sent = sum(t.total for t in traffic) - before
            group = shape["num_attention_heads"] / shape["num_key_value_heads"]
            width = shape["num_attention_heads"] * shape["head_dim"]
            formula = (2 + 2 / group) * element * width * tokens * shape["num_hidden_layers"]
            what = "float32 KV" if quant == "fp32" else "bf16 KV, queries and results float32"
            row = Row(name, f"bytes between model and attention over (2+2/G) 4 d B L, {what}", "x", "lower", 1.02)
            row.value, row.own = sent / formula, f"{sent / steps:,.0f} bytes a step"
            row.note = f"{tokens} tokens in {steps} steps, two workers, two batches; headers and tables counted"
            yield row
            engine.runner.close()  # type: ignore[attr-defined]
