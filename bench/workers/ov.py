"""OpenVINO GenAI's LLMPipeline, on the checkpoint exported by optimum."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
from turns import prompts, serve


def export(checkpoint: Path, weights: str) -> Path:
    """The checkpoint as OpenVINO IR with ``int8`` or ``int4`` weights, converted once."""
    folder = checkpoint / f"openvino-{weights}"
    if not (folder / "openvino_model.bin").exists():
        tool = Path(sys.executable).with_name("optimum-cli")
        command = [str(tool), "export", "openvino", "--model", str(checkpoint), "--weight-format", weights]
        if weights == "int4":
            command += ["--group-size", "64"]
        command += ["--task", "text-generation-with-past", str(folder)]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return folder


class OpenVino:
    """One LLMPipeline; decode time is read from the pipeline's own time stamps of each token."""

    pipeline: openvino_genai.LLMPipeline

    def load(self, checkpoint: str, quant: str, threads: int, length: int) -> dict[str, Any]:
        """Export if needed, then compile for the CPU with the default (fastest) settings."""
        folder = export(Path(checkpoint), quant)
        self.pipeline = openvino_genai.LLMPipeline(str(folder), "CPU", INFERENCE_NUM_THREADS=threads)
        return {"openvino-genai": openvino_genai.__version__, "openvino": openvino.__version__}

    def run(self, kind: str, batch: int, context: int, tokens: int, seed: int) -> dict[str, Any]:
        """As the other drivers: the timed part is the prompt, or ``tokens`` steps after the first token."""
        ids = np.array(prompts(batch, context, seed), np.int64)
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = tokens + 1 if kind == "decode" else 1
        config.ignore_eos = True
        config.do_sample = False
        metrics = self.pipeline.generate(inputs, config).perf_metrics
        if kind == "prefill":
            return {"seconds": metrics.get_ttft().mean / 1e3, "tokens": batch * context}
        stamps = metrics.raw_metrics.m_new_token_times
        return {"seconds": (stamps[-1] - stamps[0]) / 1e3, "tokens": batch * tokens, "stamps": len(stamps)}


if __name__ == "__main__":
    serve(OpenVino())
