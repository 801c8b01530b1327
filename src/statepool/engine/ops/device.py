"""The ops of one torch device: which implementation of each, chosen once, and arrays put where they run."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from statepool.core.errors import InvalidConfig
from statepool.engine.ops import linear, reference, sdpa

CHOICES = {"layer": ("reference", "triton"), "attention": ("reference", "triton", "sdpa")}
"""``layer``: norms, rotation, activation and linear operators. ``sdpa`` gives up equal bits and is only a baseline."""

VARIABLE = "STATEPOOL_GPU_OPS"
_log = logging.getLogger(__name__)


def choose(device: torch.device, wanted: Mapping[str, str] | None = None) -> dict[str, str]:
    """The implementation of each family of ops on ``device``; the reason is logged.

    Args:
        wanted: families to decide by hand; without it the environment's ``STATEPOOL_GPU_OPS``, such as
            ``attention=sdpa,layer=reference``.

    Raises:
        InvalidConfig: an unknown family or implementation, or Triton where it is not installed.
    """
    if wanted is None:
        pairs = filter(None, os.environ.get(VARIABLE, "").split(","))
        wanted = {name.strip(): value.strip() for name, _, value in (pair.partition("=") for pair in pairs)}
    installed = importlib.util.find_spec("triton") is not None
    if device.type != "cuda":
        default, why = "reference", f"the device is {device}"
    elif not installed:
        default, why = "reference", "triton is not installed; this is correct and very slow"
    else:
        default, why = "triton", torch.cuda.get_device_name(device)
    chosen = dict.fromkeys(CHOICES, default)
    for family, name in wanted.items():
        if name not in CHOICES.get(family, ()):
            known = "; ".join(f"{key}: {', '.join(names)}" for key, names in CHOICES.items())
            raise InvalidConfig(f"{VARIABLE} asks for {family}={name}; known are {known}", param=VARIABLE)
        if name == "triton" and not installed:
            raise InvalidConfig(f"{VARIABLE} asks for triton, which is not installed", param=VARIABLE)
        chosen[family] = name
    level = logging.WARNING if device.type == "cuda" and "reference" in chosen.values() else logging.INFO
    by_hand = f"; by hand {dict(wanted)}" if wanted else ""
    _log.log(level, "device ops %s (%s%s)", chosen, why, by_hand)
    return chosen


class DeviceOps:
    """The names of ``statepool.native.kernels`` that a runner calls, over tensors of one device.

    Weights may be numpy arrays (bf16 as ``uint16``); activations are tensors that are already there.
    """

    def __init__(self, device: torch.device, wanted: Mapping[str, str] | None = None) -> None:
        self.device = device
        self.chosen = choose(device, wanted)
        self._linear: type[linear.Linear] = linear.Linear
        self._layer: Any = reference.DecoderLayer
        self._norm = reference.rms_norm
        if self.chosen["layer"] == "triton":
            from statepool.engine.ops import triton_layer, triton_linear

            self._linear, self._layer = triton_linear.Linear, triton_layer.DecoderLayer
            self._norm = triton_layer.rms_norm
        self.attention: Any = sdpa.attention if self.chosen["attention"] == "sdpa" else reference.attention
        if self.chosen["attention"] == "triton":
            from statepool.engine.ops import triton_attention

            self.attention = triton_attention.attention

    @property
    def arithmetic(self) -> str:
        """Names the bits of the results. ``exact``: those of the CPU kernels."""
        if set(self.chosen.values()) == {"reference"}:
            return "exact"
        parts = [*self.chosen.values(), torch.__version__]
        if self.device.type == "cuda":
            parts.append("sm{}{}".format(*torch.cuda.get_device_capability(self.device)))
        return "-".join(parts)

    def place(self, array: Any) -> Any:
        """A numpy array or tensor as a tensor on the device; ``uint16`` becomes bfloat16. ``None`` stays."""
        if isinstance(array, np.ndarray):
            array = torch.from_numpy(array if array.flags.writeable else array.copy())
        if isinstance(array, Tensor):
            array = (array.view(torch.bfloat16) if array.dtype == torch.uint16 else array).to(self.device)
        return array

    def Linear(self, weight: Any, mode: str, bias: Any = None) -> linear.Linear:  # noqa: N802
        """A linear operator with its weights on the device."""
        return self._linear(self.place(weight), mode, self.place(bias))

    def DecoderLayer(self, **parts: Any) -> Any:  # noqa: N802
        """A decoder layer; arguments as for ``reference.DecoderLayer``."""
        return self._layer(**{name: self.place(part) for name, part in parts.items()})

    def rms_norm(self, x: Tensor, w: Tensor, eps: float, out: Tensor) -> None:
        """As ``reference.rms_norm``."""
        self._norm(x, w, eps, out)

    def head(self, x: Tensor, norm: Tensor, eps: float, linear: linear.Linear, logits: Tensor) -> None:
        """As ``reference.head``."""
        rows = torch.empty_like(x)
        self._norm(x, norm, eps, rows)
        linear.apply(rows, logits)

    def embed(self, table: Tensor, tokens: Tensor, out: Tensor) -> None:
        """As ``reference.embed``."""
        reference.embed(table, tokens, out)
