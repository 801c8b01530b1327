"""The one decoder behind every family: its shape, and where its tensors are found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from statepool.core.errors import InvalidCheckpoint
from statepool.engine.loader import Checkpoint


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """A pre-norm decoder with GQA, RoPE and a gated SiLU MLP."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    max_position: int
    tied: bool
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    rope: Mapping[str, Any] = field(default_factory=dict)
    eos_ids: tuple[int, ...] = ()

    @classmethod
    def parse(cls, config: Mapping[str, Any], family: str, **features: bool) -> DecoderConfig:
        """Read the fields that all families share. ``features`` sets the boolean ones.

        Raises:
            InvalidCheckpoint: a field is missing or impossible, or describes what is not built.
        """
        try:
            hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
            parsed = cls(
                family=family,
                vocab_size=int(config["vocab_size"]),
                hidden_size=hidden,
                intermediate_size=int(config["intermediate_size"]),
                layers=int(config["num_hidden_layers"]),
                heads=heads,
                kv_heads=int(config.get("num_key_value_heads") or heads),
                head_dim=int(config.get("head_dim") or hidden // heads),
                eps=float(config.get("rms_norm_eps", 1e-6)),
                max_position=int(config["max_position_embeddings"]),
                tied=bool(config.get("tie_word_embeddings", False)),
                rope=_rope(config),
                eos_ids=_ids(config.get("eos_token_id")),
                **features,
            )
        except KeyError as error:
            raise InvalidCheckpoint(f"config.json lacks {error}") from None
        except (TypeError, ValueError) as error:
            raise InvalidCheckpoint(f"config.json has a field of the wrong type: {error}") from None
        parsed._check(config)
        return parsed

    def _check(self, config: Mapping[str, Any]) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "layers", "heads", "kv_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise InvalidCheckpoint(f"config.json: {name} must be positive, got {getattr(self, name)}", param=name)
        if self.heads % self.kv_heads:
            raise InvalidCheckpoint(f"config.json: {self.heads} heads cannot share {self.kv_heads} KV heads")
        if self.head_dim % 16:
            raise InvalidCheckpoint(f"config.json: head_dim {self.head_dim} is not a multiple of 16")
        if config.get("hidden_act", "silu") != "silu":
            raise InvalidCheckpoint(
                f"hidden_act {config['hidden_act']!r} is not supported; only silu is", param="hidden_act"
            )
        if config.get("use_sliding_window"):
            raise InvalidCheckpoint("use_sliding_window is not supported", param="use_sliding_window")
        if config.get("quantization_config"):
            raise InvalidCheckpoint("checkpoint is already quantised; give the original in bf16, fp16 or fp32")

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of every tensor the checkpoint must hold."""
        h, f, q, kv = (
            self.hidden_size,
            self.intermediate_size,
            self.heads * self.head_dim,
            self.kv_heads * self.head_dim,
        )
        yield "model.embed_tokens.weight", (self.vocab_size, h)
        yield "model.norm.weight", (h,)
        if not self.tied:
            yield "lm_head.weight", (self.vocab_size, h)
        for i in range(self.layers):
            at = f"model.layers.{i}"
            yield f"{at}.input_layernorm.weight", (h,)
            yield f"{at}.post_attention_layernorm.weight", (h,)
            linears = {
                "self_attn.q_proj": (q, h, self.qkv_bias),
                "self_attn.k_proj": (kv, h, self.qkv_bias),
                "self_attn.v_proj": (kv, h, self.qkv_bias),
                "self_attn.o_proj": (h, q, self.o_bias),
                "mlp.gate_proj": (f, h, self.mlp_bias),
                "mlp.up_proj": (f, h, self.mlp_bias),
                "mlp.down_proj": (h, f, self.mlp_bias),
            }
            for name, (rows, columns, bias) in linears.items():
                yield f"{at}.{name}.weight", (rows, columns)
                if bias:
                    yield f"{at}.{name}.bias", (rows,)
            if self.qk_norm:
                yield f"{at}.self_attn.q_norm.weight", (self.head_dim,)
                yield f"{at}.self_attn.k_norm.weight", (self.head_dim,)

    def validate(self, checkpoint: Checkpoint) -> int:
        """Check that the checkpoint holds exactly these tensors; return the number of parameters.

        Raises:
            InvalidCheckpoint: a tensor is missing, has another shape, or is one the model has no use for.
        """
        wanted = dict(self.tensors())
        count = 0
        for name, shape in wanted.items():
            if name not in checkpoint.names:
                raise InvalidCheckpoint(f"tensor {name} is missing from {str(checkpoint.path)!r}", param=name)
            if checkpoint.shape(name) != shape:
                raise InvalidCheckpoint(
                    f"tensor {name} has shape {checkpoint.shape(name)}, config.json says {shape}", param=name
                )
            size = 1
            for n in shape:
                size *= n
            count += size
        for name in sorted(checkpoint.names - set(wanted)):
            # Old exports store the rotary buffers, and tied heads a second copy.
            if not (name.endswith("rotary_emb.inv_freq") or (self.tied and name == "lm_head.weight")):
                raise InvalidCheckpoint(f"tensor {name} has no place in a {self.family} model", param=name)
        return count


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    # transformers 5 writes rope_parameters; older files rope_theta beside rope_scaling.
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    rope.setdefault("original_max_position_embeddings", config["max_position_embeddings"])
    return rope


def _ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(int(v) for v in value) if isinstance(value, list) else (int(value),)
