"""The model that learns, in torch: the bundled model's own form, or any causal model that transformers loads.

Both score samples (log-probabilities of what is to be learned), hand out their tensors under Hugging Face names, and
write themselves in that layout.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from statepool.core.errors import InvalidCheckpoint, InvalidConfig
from statepool.engine.attention.moba.config import MobaConfig
from statepool.engine.attention.spec import AttentionSpec
from statepool.train.engine_forward import EngineForward
from statepool.train.given import valued
from statepool.train.lora import merged
from statepool.train.packed import block_states
from statepool.train.predicted import chosen
from statepool.train.prefix_tree import Sample, Tree, hidden, plant
from statepool.train.torch_model import PINNED, Qwen3, Shape
from statepool.train.tree_gradient import learned


class Scored(NamedTuple):
    """Log-probabilities ``[samples, tokens behind the longest prompt]``, 0 where ``mask`` is."""

    logprobs: Tensor
    mask: Tensor
    entropy: Tensor
    """The same shape, no gradient; 0 where not asked for."""


class Policy(Protocol):
    """What the trainer needs of a model."""

    folder: Path
    """The checkpoint it began as."""

    @property
    def module(self) -> nn.Module:
        """The weights."""
        ...

    def score(self, samples: Sequence[Sample], temperature: float = 1.0) -> Scored:
        """Log-probabilities of the learned tokens, with gradients."""
        ...

    def tensors(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """What an engine is to load: names as in the checkpoint, float32."""
        ...

    def settle(self) -> None:
        """Called after each step of the optimizer."""
        ...

    def export(self, folder: Path) -> None:
        """Write the model in the Hugging Face layout."""
        ...

    def write(self, folder: Path, tensors: Iterator[tuple[str, Tensor]]) -> None:
        """Write config, tokenizer and these tensors, in float32."""
        ...


class OwnPolicy:
    """Tied Qwen3 models in this package's code, whose samples share their prompts' computation.

    Args:
        folder: a checkpoint in the Hugging Face layout.
        attention: block attention instead of full attention; then samples are computed whole, one behind another.

    Raises:
        InvalidCheckpoint: files are missing or of another form.
    """

    def __init__(self, folder: Path, attention: AttentionSpec | None = None) -> None:
        self.folder = folder
        self._attention = attention
        self.module: Qwen3 = Qwen3(shape_of(folder))
        weights = {name: tensor.float() for name, tensor in _weights(folder).items()}
        weights.pop("lm_head.weight", None)
        try:
            self.module.load_state_dict(weights)
        except RuntimeError as error:
            raise InvalidCheckpoint(f"{folder} does not hold the weights its config names: {error}") from None
        self._pinned = bool((self.module.model.embed_tokens.weight[:, 0] == PINNED).all())

    def score(self, samples: Sequence[Sample], temperature: float = 1.0) -> Scored:
        """See ``Policy.score``."""
        if self._attention is not None:
            states, targets, rows, columns, shape = block_states(self.module, samples, self._attention)
            return scatter(self.module.logits(states), targets, rows, columns, shape, temperature)
        tree = plant(samples)
        return scatter(self._logits(tree), tree.targets, tree.rows, tree.columns, tree.shape, temperature)

    def _logits(self, tree: Tree) -> Tensor:
        """Logits of what is to be learned: in float32 the engine's own, with their gradients."""
        weights = {name: tensor.detach().numpy() for name, tensor in merged(self.module)}
        if any(value.dtype != np.float32 for value in weights.values()):
            return self.module.logits(hidden(self.module, tree)[tree.predictors])
        engine = EngineForward(self.module.shape, weights)
        computed = engine.run(tree)
        logits = torch.from_numpy(engine.logits(computed.states[-1][tree.predictors].numpy()))
        if not torch.is_grad_enabled():
            return logits
        own = dict(self.module.named_parameters())
        if own.keys() == weights.keys():
            return learned(logits, own, self.module.shape, tree, computed)
        # With additions beside the weights, which have gradients of their own.
        states = hidden(self.module, tree, computed.states[1:])
        return valued(self.module.logits(states.index_select(0, tree.predictors)), logits)

    def tensors(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """See ``Policy.tensors``."""
        for name, tensor in self.module.state_dict().items():
            yield name, tensor.detach().float().numpy()

    def settle(self) -> None:
        """Keep the pinned number of the embeddings where it is."""
        if self._pinned:
            self.module.pin()

    def export(self, folder: Path) -> None:
        """Write config, tokenizer and weights in float32."""
        self.write(folder, iter(self.module.state_dict().items()))

    def write(self, folder: Path, tensors: Iterator[tuple[str, Tensor]]) -> None:
        """See ``Policy.write``."""
        _write(self.folder, folder, tensors)


class HubPolicy:
    """Any causal language model of transformers, in rows of whole sequences.

    Raises:
        InvalidConfig: transformers is not installed. InvalidCheckpoint: it cannot load the folder.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from transformers import AutoModelForCausalLM
        except ModuleNotFoundError:
            raise InvalidConfig(
                "this checkpoint needs transformers for training; pip install 'statepool[lora]'", param="model"
            ) from None
        self.folder = folder
        try:
            self.module: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise InvalidCheckpoint(f"transformers cannot load {folder}: {error}") from None

    def score(self, samples: Sequence[Sample], temperature: float = 1.0) -> Scored:
        """See ``Policy.score``."""
        width = max(len(sample.tokens) for sample in samples)
        ids = torch.tensor([[*sample.tokens, *[0] * (width - len(sample.tokens))] for sample in samples])
        seen = torch.tensor([[1] * len(s.tokens) + [0] * (width - len(s.tokens)) for s in samples])
        logits = self.module(input_ids=ids, attention_mask=seen).logits
        places = [
            (row, at)
            for row, sample in enumerate(samples)
            for at in range(sample.prompt, len(sample.tokens))
            if sample.learn[at]
        ]
        rows, ats = torch.tensor(places, dtype=torch.int64).reshape(-1, 2).T
        prompts = torch.tensor([sample.prompt for sample in samples])
        shape = (len(samples), max(len(s.tokens) - s.prompt for s in samples))
        return scatter(logits[rows, ats - 1], ids[rows, ats], rows, ats - prompts[rows], shape, temperature)

    def tensors(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """See ``Policy.tensors``."""
        tied = getattr(self.module.config, "tie_word_embeddings", False)
        for name, tensor in self.module.state_dict().items():
            if not (tied and name == "lm_head.weight"):
                yield name, tensor.detach().float().numpy()

    def settle(self) -> None:
        """Nothing to keep in place."""

    def export(self, folder: Path) -> None:
        """Write config, tokenizer and weights in float32."""
        self.write(folder, ((name, torch.from_numpy(value)) for name, value in self.tensors()))

    def write(self, folder: Path, tensors: Iterator[tuple[str, Tensor]]) -> None:
        """See ``Policy.write``."""
        _write(self.folder, folder, tensors)


def load(folder: Path, attention: str = "full") -> Policy:
    """The policy for a checkpoint: this package's own code where it fits, else transformers.

    Args:
        folder: the checkpoint.
        attention: as in ``EngineConfig``; ``full`` or ``moba``.

    Raises:
        InvalidConfig: another attention, or block attention of a model that is not in this package's own code.
    """
    spec = AttentionSpec.parse(attention)
    config = _config(folder)
    plain = config.get("model_type") == "qwen3" and config.get("tie_word_embeddings") and not _scaled(config)
    own = plain and not config.get("attention_bias")
    if spec.sparse is None:
        return OwnPolicy(folder) if own else HubPolicy(folder)
    if not isinstance(spec.sparse, MobaConfig) or not own:
        raise InvalidConfig(f"attention {attention!r} cannot be trained with this model; full can", param="attention")
    return OwnPolicy(folder, spec)


def shape_of(folder: Path) -> Shape:
    """The sizes in a folder's config.json.

    Raises:
        InvalidCheckpoint: a size is missing.
    """
    config = _config(folder)
    rope = config.get("rope_parameters") or {}
    config = {"rope_theta": rope.get("rope_theta"), **config}
    try:
        return Shape(**{item.name: config[item.name] for item in fields(Shape)})
    except KeyError as error:
        raise InvalidCheckpoint(f"{folder / 'config.json'} does not name {error}") from None


def scatter(
    logits: Tensor, targets: Tensor, rows: Tensor, columns: Tensor, shape: tuple[int, int], temperature: float
) -> Scored:
    """Log-probabilities of ``targets`` under ``logits [learned, vocab]``, laid out as samples by columns."""
    logs, spread = chosen(logits / temperature if temperature not in (0.0, 1.0) else logits, targets)
    empty = torch.zeros(shape, dtype=logits.dtype)
    return Scored(
        empty.index_put((rows, columns), logs),
        empty.index_put((rows, columns), torch.ones_like(logs)),
        empty.index_put((rows, columns), spread),
    )


def _config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise InvalidCheckpoint(f"{folder / 'config.json'} cannot be read: {error}") from None
    return config


def _scaled(config: dict[str, Any]) -> bool:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return bool(rope.get("rope_type", rope.get("type", "default")) != "default")


def _weights(folder: Path) -> dict[str, Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InvalidCheckpoint(f"{folder} holds no .safetensors file")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _write(source: Path, folder: Path, tensors: Iterator[tuple[str, Tensor]]) -> None:
    """A checkpoint in float32 whose other files are those of ``source``."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file() and path.suffix in (".json", ".jinja", ".txt", ".model") and "index" not in path.name:
            shutil.copyfile(path, folder / path.name)
    config = _config(folder)
    config.pop("dtype", None)
    (folder / "config.json").write_text(json.dumps({**config, "torch_dtype": "float32"}, indent=2) + "\n")
    weights = {name: tensor.detach().float().contiguous() for name, tensor in tensors}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
