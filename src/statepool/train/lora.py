"""Low-rank additions to the linear layers of any policy, by `peft`.

What is published and exported is their sum; beside it the additions alone are written in peft's layout.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from statepool.core.errors import InvalidConfig

if TYPE_CHECKING:
    from statepool.train.policy import Policy

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def add(policy: Policy, rank: int, seed: int) -> None:
    """Freeze a policy's weights and put an addition of ``rank`` beside each linear layer of its blocks.

    The additions begin as zero, so the policy begins as it was; ``seed`` draws the half that is not.

    Raises:
        InvalidConfig: peft is missing, or the model has no layer of the usual names.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError:
        raise InvalidConfig("lora_rank needs peft; pip install 'statepool[lora]'", param="lora_rank") from None
    names = {name.rpartition(".")[2] for name, module in policy.module.named_modules() if isinstance(module, nn.Linear)}
    targets = [name for name in TARGETS if name in names]
    if not targets:
        raise InvalidConfig(f"lora_rank: the model has none of the layers {', '.join(TARGETS)}", param="lora_rank")
    policy.module.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(**_settings(rank, targets)), policy.module)


def _settings(rank: int, targets: list[str]) -> dict[str, Any]:
    return {"r": rank, "lora_alpha": 2 * rank, "target_modules": targets}


def merged(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A module's tensors under the names they had before `add`, the additions summed into them."""
    layers = {name: layer for name, layer in module.named_modules() if hasattr(layer, "base_layer")}
    for name, tensor in module.state_dict().items():
        if ".lora_" in name:
            continue
        owner, base, kind = name.rpartition(".base_layer.")
        if not base:
            yield name, tensor
        elif kind == "weight":
            layer: Any = layers[owner]
            yield f"{owner}.weight", (tensor + layer.get_delta_weight("default")).detach()
        else:
            yield f"{owner}.{kind}", tensor


class Merged:
    """A policy with additions, seen from outside as if it had been trained whole."""

    def __init__(self, policy: Policy, rank: int, seed: int) -> None:
        self._policy = policy
        self._rank = rank
        self.folder = policy.folder
        self.module = policy.module
        self.score = policy.score
        self.settle = policy.settle
        add(policy, rank, seed)

    def tensors(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """See ``Policy.tensors``."""
        for name, tensor in self._named():
            yield name, tensor.float().numpy()

    def export(self, folder: Path) -> None:
        """Write the sum in the Hugging Face layout."""
        self._policy.write(folder, self._named())

    def export_additions(self, folder: Path) -> None:
        """Write the additions alone in peft's layout, with the tokenizer; they name the base model's folder."""
        from peft import LoraConfig

        folder.mkdir(parents=True, exist_ok=True)
        base = self.folder.resolve()
        for pattern in ("tokenizer*", "chat_template*", "generation_config.json"):
            for path in base.glob(pattern):
                shutil.copyfile(path, folder / path.name)
        halves = {n: t.detach().contiguous() for n, t in self.module.state_dict().items() if ".lora_" in n}
        targets = sorted({name.rpartition(".lora_")[0].rpartition(".")[2] for name in halves})
        named = {f"base_model.model.{name.replace('.default.', '.')}": tensor for name, tensor in halves.items()}
        save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        LoraConfig(
            **_settings(self._rank, targets), base_model_name_or_path=str(base), task_type="CAUSAL_LM",
            inference_mode=True,
        ).save_pretrained(str(folder))  # fmt: skip

    def write(self, folder: Path, tensors: Iterator[tuple[str, Tensor]]) -> None:
        """See ``Policy.write``."""
        self._policy.write(folder, tensors)

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        kept = {name for name, _ in self._policy.tensors()}
        for name, tensor in merged(self.module):
            owner, _, kind = name.rpartition(".")
            if name in kept or f"{owner}.base_layer.{kind}" in kept:
                yield name, tensor.detach()
