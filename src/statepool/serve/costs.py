"""What work costs on a node: prefill, decode and transfer times as plain functions of token counts.

The conductor estimates with these and the simulator lets time pass by them. Constants of the two presets are fitted to
the operator timings of Vidur (data/profiling of microsoft/vidur) for Llama-2/3-70B on eight GPUs, tensor parallel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from statepool.core.errors import InvalidConfig

__all__ = ["NODES", "NodeCosts", "fit_prefill", "least_squares", "node_costs"]

_TOKENS = (1, 16, 64, 128, 256, 512, 1024, 2048, 4096)
_A100_LINEAR_US = (179, 184, 194, 236, 382, 651, 1180, 2331, 4478)
_H100_LINEAR_US = (105, 107, 112, 125, 144, 221, 408, 795, 1538)
_REDUCE_MB = (0.58, 3.7, 8.3, 15.0, 29.0, 47.0, 66.0)
_REDUCE_US = (35, 93, 151, 254, 384, 492, 662)


@dataclass(frozen=True, slots=True)
class NodeCosts:
    """The model of one node (eight GPUs that serve one model together).

    ``prefill`` is (c0, c1, c2): seconds for a prompt of n tokens of which p are cached are
    c0 + c1 (n - p) + c2 (n^2 - p^2); where ``step_tokens`` is set, c0 for every step.
    """

    name: str
    prefill: tuple[float, float, float]
    linear_us: tuple[float, ...]
    """Microseconds of one layer's linear operators at ``sizes`` tokens."""
    hbm_bytes_s: float
    """Bytes of keys and values that the node reads per second in decode."""
    layers: int = 80
    hidden_bytes: int = 16384
    kv_bytes: int = 327_680
    """Bytes of keys and values per token."""
    vram_tokens: int = 1_330_000
    dram_tokens: int = 3_000_000
    nic_bytes_s: float = 100e9
    h2d_bytes_s: float = 128e9
    handoff_base_s: float = 0.0
    """Seconds of a hand-over from prefill to decode that do not depend on its size."""
    load_after: bool = False
    """Whether device memory is loaded only after all layers have arrived, as Mooncake describes, not layer by layer."""
    prefill_beside: float = 1.0
    """How many times as long a prefill takes while the same machine decodes; 1 where they share nothing."""
    decode_beside: float = 1.0
    """How many times as long a decode step takes while the same machine computes a prefill."""
    step_tokens: int = 0
    """Most prompt tokens of an engine's step, which the prompts in its line share; 0 where one runs after the other."""
    joining_s: float = 0.0
    """Longest that a decode step waits for the blocks of one that joins; what takes longer comes beside the steps."""
    reply_s: float = 0.0
    """Seconds to a first token that no engine is busy with: connection, parsing, the way there and back."""
    sizes: tuple[int, ...] = _TOKENS

    def prefill_s(self, tokens: int, cached: int = 0) -> float:
        """Seconds to compute the keys and values of ``tokens`` tokens when the first ``cached`` are there."""
        c0, c1, c2 = self.prefill
        steps = max(1, -(-(tokens - cached) // self.step_tokens)) if self.step_tokens else 1
        return c0 * steps + c1 * (tokens - cached) + c2 * (tokens * tokens - cached * cached)

    def chunked_s(self, tokens: int, cached: int, chunk: int) -> float:
        """``prefill_s`` in pieces of ``chunk`` tokens, each with its constant share; 0 for one piece."""
        if not chunk or tokens <= cached:
            return self.prefill_s(tokens, cached) if tokens > cached else 0.0
        return self.prefill_s(tokens, cached) + self.prefill[0] * ((tokens - cached - 1) // chunk)

    def prefill_many_s(self, tokens: int, cached: np.ndarray) -> np.ndarray:
        """``prefill_s`` for an array of cached lengths: int64 [n] to float64 [n]."""
        c0, c1, c2 = self.prefill
        have = cached.astype(np.float64)
        steps = np.maximum(1.0, np.ceil((tokens - have) / self.step_tokens)) if self.step_tokens else 1.0
        return c0 * steps + c1 * (tokens - have) + c2 * (float(tokens) * tokens - have * have)

    def decode_s(self, batch: int, kv_tokens: int) -> float:
        """Seconds of one decode step of ``batch`` sequences that hold ``kv_tokens`` tokens together."""
        return float(self.decode_many_s(np.array([batch]), np.array([kv_tokens]))[0])

    def decode_many_s(self, batch: np.ndarray, kv_tokens: np.ndarray) -> np.ndarray:
        """``decode_s`` of many nodes: int64 [n] and int64 [n] to float64 [n]."""
        linear_us = np.interp(batch, self.sizes, self.linear_us) * np.maximum(1.0, batch / self.sizes[-1])
        megabytes = batch * (self.hidden_bytes / 1e6)
        reduce_us = np.interp(megabytes, _REDUCE_MB, _REDUCE_US) * np.maximum(1.0, megabytes / _REDUCE_MB[-1])
        step_s: np.ndarray = self.layers * (linear_us + 2 * reduce_us) * 1e-6 + kv_tokens * self.token_read_s
        return step_s

    @property
    def token_read_s(self) -> float:
        """Seconds a decode step spends on each cached token."""
        return self.kv_bytes / self.hbm_bytes_s

    def transfer_s(self, tokens: int) -> float:
        """Seconds that the keys and values of ``tokens`` tokens occupy a network link."""
        return tokens * self.kv_bytes / self.nic_bytes_s

    def handoff_s(self, tokens: int) -> float:
        """Seconds from the end of a prefill to a decode node's memory.

        Layers travel while later ones are computed, so that only the last one is waited for.
        """
        held = tokens * self.kv_bytes
        load = held / self.h2d_bytes_s
        return (
            self.handoff_base_s
            + held / self.nic_bytes_s / self.layers
            + (load if self.load_after else load / self.layers)
        )

    def stall_s(self, tokens: int) -> float:
        """How much of ``handoff_s`` everybody in the batch waits for."""
        moves_s = self.handoff_s(tokens) - self.handoff_base_s
        return moves_s if moves_s <= self.joining_s else 0.0


NODES = {
    "a800": NodeCosts("a800", (0.0183, 1.130e-4, 9.52e-10), _A100_LINEAR_US, 8 * 2.04e12 * 0.8),
    "h800": NodeCosts("h800", (0.0150, 5.52e-5, 3.35e-10), _H100_LINEAR_US, 8 * 3.35e12 * 0.8),
}


def node_costs(name: str, nic_gbps: float | None = None) -> NodeCosts:
    """The preset of that name, with another network if given.

    Raises:
        InvalidConfig: there is no such preset, or the network has no bandwidth.
    """
    if name not in NODES:
        raise InvalidConfig(f"node is {name!r}; known are {', '.join(NODES)}", param="node")
    if nic_gbps is None:
        return NODES[name]
    if not nic_gbps > 0:
        raise InvalidConfig(f"nic_gbps is {nic_gbps}; it must be above 0", param="nic_gbps")
    return replace(NODES[name], nic_bytes_s=nic_gbps * 1e9 / 8)


def fit_prefill(
    tokens: Sequence[int], cached: Sequence[int], seconds: Sequence[float]
) -> tuple[tuple[float, float, float], float]:
    """The coefficients of ``NodeCosts.prefill`` for measured prefills, and the largest relative error left.

    Relative errors are minimised, because a prompt of a hundred tokens counts as much as one of a hundred thousand.

    Raises:
        InvalidConfig: fewer than three different measurements, or one that took no time.
    """
    n, p, t = (np.asarray(column, dtype=np.float64) for column in (tokens, cached, seconds))
    if len(set(zip(n.tolist(), p.tolist(), strict=True))) < 3:
        raise InvalidConfig("a prefill fit needs at least three different (tokens, cached) pairs", param="tokens")
    if not (t > 0).all():
        raise InvalidConfig("every measured prefill must have taken more than 0 seconds", param="seconds")
    design = np.stack([np.ones_like(n), n - p, n * n - p * p], axis=1)
    solution = np.linalg.lstsq(design / t[:, None], np.ones_like(t), rcond=None)[0]
    worst = float(np.abs(design @ solution / t - 1).max())
    return (float(solution[0]), float(solution[1]), float(solution[2])), worst


def least_squares(design: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Least squares without a negative cost, float64 [columns]: the best of those that leave some columns out.

    Args:
        design: float64 [measurements, columns], of few columns: every choice of them is tried.
        measured: float64 [measurements].
    """
    columns = design.shape[1]
    best, found = float("inf"), np.zeros(columns)
    for count in range(columns, 0, -1):
        for kept in map(list, combinations(range(columns), count)):
            some = np.linalg.lstsq(design[:, kept], measured, rcond=None)[0]
            left = float(np.square(design[:, kept] @ some - measured).sum())
            # Of columns that say the same, rounding must not choose.
            if (some >= 0).all() and left < best * (1 - 1e-9):
                best, found = left, np.zeros(columns)
                found[kept] = some
    return found
