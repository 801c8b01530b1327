"""A5: the certificate against exact attention in float64, over keys drawn to defeat it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from bench.machine import LoadWatch
from bench.row import Row
from statepool.engine.attention.wave import WaveConfig, WaveIndex

_HEADS, _GROUP, _TOKENS, _WIDTH, _QUERIES = 8, 8, 1024, 32, 40
_KINDS = ("clusters", "noise", "outliers", "camps", "line")


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """Count pairs of a query and a head whose error is larger than proved."""
    if only and not any(name.startswith("A5") for name in only):
        return
    row = Row("A5", "proved errors that exact attention exceeds", "pairs", "lower", 0.0)
    watch = LoadWatch()
    rng, config = np.random.default_rng(5), WaveConfig(update_segment=256, segment=1024, least=0)
    pairs = broken = 0
    tight: list[float] = []
    while pairs < (20_000 if quick else 1_000_000):
        keys = _keys(_KINDS[pairs // (_QUERIES * _HEADS * _GROUP) % len(_KINDS)], rng)
        values = rng.standard_normal(keys.shape).astype(np.float32)
        index = WaveIndex.build(keys, values, config)
        for _ in range(_QUERIES):
            query = rng.standard_normal((_HEADS * _GROUP, _WIDTH)) * 10 ** rng.uniform(-1, 1)
            got = index.decode_within(query.astype(np.float32), math.inf)
            assert got.error is not None
            error = np.linalg.norm(got.out - _exact(query.astype(np.float32), keys, values), axis=1)
            broken += int((error > got.error).sum())
            tight += (error / got.error).tolist()
            pairs += len(error)
    row.value = float(broken)
    row.own = f"{pairs:,} pairs; the error is {np.median(tight):.2g} of the bound at the median"
    row.command, row.load = "python -m bench attention --only A5", watch.stop()
    yield row


def _keys(kind: str, rng: np.random.Generator) -> np.ndarray:
    keys = rng.standard_normal((_HEADS, _TOKENS, _WIDTH))
    if kind == "clusters":
        keys = np.repeat(rng.standard_normal((_HEADS, _TOKENS // 16, _WIDTH)) * 2, 16, axis=1) + 0.2 * keys
    elif kind == "outliers":
        keys[:, rng.integers(0, _TOKENS, 9)] *= 8
    elif kind == "camps":
        keys = np.sign(keys[:, :, :1]) * np.ones(_WIDTH) + 0.05 * keys
    elif kind == "line":
        keys = np.linspace(-3, 3, _TOKENS)[None, :, None] * np.ones((_HEADS, 1, _WIDTH))
    return keys.astype(np.float32)


def _exact(query: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    q = query.astype(np.float64).reshape(_HEADS, _GROUP, _WIDTH)
    scores = q @ keys.astype(np.float64).transpose(0, 2, 1) / math.sqrt(_WIDTH)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights @ values.astype(np.float64) / weights.sum(-1, keepdims=True)).reshape(query.shape)
