"""Low-rank additions to the linear layers of any policy, by `peft`; what is published and exported is their sum."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import torch
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
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets), policy.module)


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

    def write(self, folder: Path, tensors: Iterator[tuple[str, Tensor]]) -> None:
        """See ``Policy.write``."""
        self._policy.write(folder, tensors)

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        kept = {name for name, _ in self._policy.tensors()}
        for name, tensor in merged(self.module):
            if name in kept or name.replace(".weight", ".base_layer.weight") in kept:
                yield name, tensor.detach()
