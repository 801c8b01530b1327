"""llama.cpp through its C interface: explicit batches, logits of last positions only."""

from __future__ import annotations

import ctypes
import json
import time
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from turns import prompts, serve

_TYPES = {"q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0}
_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def export(checkpoint: Path, quant: str) -> Path:
    """The checkpoint as GGUF: bf16 written here, ``q8_0`` and ``q4_0`` made from it by llama.cpp's own quantiser."""
    plain = checkpoint / "model-bf16.gguf"
    if not plain.exists():
        _write(checkpoint, plain)
    if quant == "bf16":
        return plain
    path = checkpoint / f"model-{quant}.gguf"
    if not path.exists():
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = _TYPES[quant]
        part = path.with_suffix(".part")
        if llama_cpp.llama_model_quantize(str(plain).encode(), str(part).encode(), ctypes.byref(params)):
            raise RuntimeError(f"llama.cpp could not quantise {plain} to {quant}")
        part.rename(path)
    return path


def _write(checkpoint: Path, path: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    part = path.with_suffix(".part")
    writer = gguf.GGUFWriter(str(part), "qwen3")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    writer.add_file_type(llama_cpp.LLAMA_FTYPE_MOSTLY_BF16)
    for name, words in _tensors(checkpoint / "model.safetensors"):
        if words.ndim == 1:
            writer.add_tensor(name, (words.astype(np.uint32) << 16).view(np.float32))
        else:
            writer.add_tensor(name, words.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(path)


def _tensors(path: Path) -> list[tuple[str, Any]]:
    data = np.memmap(path, np.uint8, "r")
    size = int(data[:8].view(np.uint64)[0])
    header = json.loads(data[8 : 8 + size].tobytes())
    found = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        first, last = (8 + size + place for place in entry["data_offsets"])
        words = data[first:last].view(np.uint16).reshape(entry["shape"])
        found.append((_rename(name), words))
    return found


def _rename(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{_NAMES[rest.removesuffix('.weight')]}.weight"


class LlamaCpp:
    """One context of eight sequences, unified KV."""

    def load(self, checkpoint: str, quant: str, threads: int, length: int) -> dict[str, Any]:
        """Export if needed, then load with memory mapping off, so that pages are warm."""
        path = export(Path(checkpoint), quant)
        llama_cpp.llama_backend_init()
        settings = llama_cpp.llama_model_default_params()
        settings.use_mmap = False
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), settings)
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = options.n_batch = max(length, 8192)
        options.n_ubatch = 512
        options.n_seq_max = 8
        options.kv_unified = True
        options.n_threads = options.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        if not self.context:
            raise RuntimeError("llama.cpp made no context")
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(options.n_batch, 0, 1)
        flags = llama_cpp.llama_print_system_info().decode()
        return {"llama-cpp-python": llama_cpp.__version__, "build": flags}

    def run(self, kind: str, batch: int, context: int, tokens: int, seed: int) -> dict[str, Any]:
        """As the other drivers: the timed part is the prompt, or ``tokens`` steps after the first token."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        rows = prompts(batch, context, seed)
        started = time.perf_counter()
        entries = [(t, p, s, p == context - 1) for s, row in enumerate(rows) for p, t in enumerate(row)]
        latest = self._decode(entries)
        if kind == "prefill":
            return {"seconds": time.perf_counter() - started, "tokens": batch * context}
        started = time.perf_counter()
        for step in range(tokens):
            latest = self._decode([(token, context + step, s, True) for s, token in enumerate(latest)])
        return {"seconds": time.perf_counter() - started, "tokens": batch * tokens}

    def _decode(self, entries: list[tuple[int, int, int, bool]]) -> list[int]:
        """Run one batch of (token, position, sequence, wants logits); the greedy choice of each wanted row."""
        batch, wanted = self.batch, []
        batch.n_tokens = len(entries)
        for place, (token, position, sequence, logits) in enumerate(entries):
            batch.token[place] = token
            batch.pos[place] = position
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = sequence
            batch.logits[place] = logits
            if logits:
                wanted.append(place)
        if llama_cpp.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")
        chosen = []
        for place in wanted:
            row = llama_cpp.llama_get_logits_ith(self.context, place)
            chosen.append(int(np.ctypeslib.as_array(row, (self.vocab,)).argmax()))
        return chosen


if __name__ == "__main__":
    serve(LlamaCpp())
