"""This project's engine, driven by its step loop."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
from turns import prompts, serve

from statepool.engine.config import EngineConfig
from statepool.engine.engine import Engine
from statepool.engine.request import Request, SamplingParams
from statepool.native import kernels


class Ours:
    """``statepool.engine.engine.Engine`` in this process, greedy, no early stop."""

    engine: Engine

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def load(self, checkpoint: str, quant: str, threads: int, length: int) -> dict[str, Any]:
        """Load ``checkpoint`` with the default KV pool (1 GiB)."""
        started = time.perf_counter()
        self.engine = Engine(
            EngineConfig(
                model=checkpoint,
                quant=quant,
                threads=threads,
                max_model_len=length,
                max_seqs=8,
                max_batched_tokens=512,
                backend="native",
            )
        )
        isa = kernels.isa() if kernels is not None else "numpy"
        return {"isa": isa, "numpy": np.__version__, "load_seconds": time.perf_counter() - started}

    def run(self, kind: str, batch: int, context: int, tokens: int, seed: int) -> dict[str, Any]:
        """Time ``prefill`` up to the last first token, or ``decode`` of ``tokens`` more per sequence."""
        params = SamplingParams(max_tokens=tokens + 1 if kind == "decode" else 1, temperature=0.0, ignore_eos=True)
        started = time.perf_counter()
        waiting = set()
        for prompt in prompts(batch, context, seed):
            name = str(next(self._numbers))
            waiting.add(name)
            self.engine.submit(Request(id=name, prompt=tuple(prompt), params=params))
        hit = self.engine.stats().prefix_hit_tokens
        while waiting:
            waiting -= {output.id for output in self.engine.step() if output.tokens}
        if self.engine.stats().prefix_hit_tokens > hit:
            raise RuntimeError("a prompt was found in the prefix cache: this would not time its prefill")
        if kind == "prefill":
            seconds, made = time.perf_counter() - started, batch * context
            while self.engine.has_work:
                self.engine.step()
            return {"seconds": seconds, "tokens": made}
        started, made = time.perf_counter(), 0
        while self.engine.has_work:
            made += sum(len(output.tokens) for output in self.engine.step())
        return {"seconds": time.perf_counter() - started, "tokens": made}


if __name__ == "__main__":
    serve(Ours())
