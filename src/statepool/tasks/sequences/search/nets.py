"""What the searches with nets share: torch, or a sentence that says how to get it, and weights drawn from a seed."""

from __future__ import annotations

import math

from statepool.core.errors import Unavailable

try:
    import torch
except ImportError as error:  # pragma: no cover - torch is an extra
    raise Unavailable("algo: hpgan and alphaseq need torch; pip install 'statepool[train]'") from error

__all__ = ["seeded", "torch"]


def seeded(net: torch.nn.Module, noise: torch.Generator) -> None:
    """Draw all weights and biases of the linear layers, uniform within 1 / sqrt(inputs), in the order of the layers."""
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, torch.nn.Linear):
                bound = 1 / math.sqrt(layer.in_features)
                for part in (layer.weight, layer.bias):
                    part.copy_((2 * torch.rand(part.shape, generator=noise) - 1) * bound)
