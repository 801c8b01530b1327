"""Vectors to search: real embeddings from a folder the user names, and a synthetic set anybody can make."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

CACHE = Path(__file__).resolve().parents[2] / ".bench"
REAL = "STATEPOOL_ANN_DATA"
"""Folder with base_50k_384_f16.npy, queries_{passages,headings}_1k_f16.npy and gt_{passages,headings}_1k.npy."""

QUERIES = 1000
TRUTH = 100


class Missing(Exception):
    """The set is not on this machine; the text says what to do."""


def load(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, queries (float32, unit length) and the ids of the true nearest, int32 ``[queries, 100]``.

    ``mini``: held-out passages over 50,000 x 384 embeddings. ``head``: headings over the same, out of distribution.
    ``syn``: 200,000 x 128 in 300 clusters.

    Raises:
        Missing: the real embeddings are not where ``STATEPOOL_ANN_DATA`` says.
    """
    if name == "syn":
        return _synthetic()
    folder = Path(os.environ.get(REAL, ""))
    if not (folder / "base_50k_384_f16.npy").is_file():
        raise Missing(f"set {REAL} to the folder of the real embeddings (base_50k_384_f16.npy and others)")
    kind = {"mini": "passages", "head": "headings"}[name]
    rows = np.load(folder / "base_50k_384_f16.npy").astype(np.float32)
    queries = np.load(folder / f"queries_{kind}_1k_f16.npy").astype(np.float32)
    return rows, queries, np.load(folder / f"gt_{kind}_1k.npy")


def _synthetic(count: int = 200_000, dim: int = 128, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    path = CACHE / "vector" / f"syn_{count}_{dim}_{seed}.npz"
    if not path.exists():
        rng = np.random.default_rng(seed)
        latent, middle, clusters = 24, 96, 300
        centers = rng.normal(size=(clusters, latent))
        widths = rng.uniform(0.35, 0.845, size=clusters)
        total = count + QUERIES
        owner = rng.choice(clusters, size=total, p=rng.dirichlet(np.full(clusters, 0.7)))
        points = centers[owner] + rng.normal(size=(total, latent)) * widths[owner, None]
        lift = np.tanh(points @ rng.normal(size=(latent, middle)) / np.sqrt(latent))
        rows = lift @ rng.normal(size=(middle, dim)) / np.sqrt(middle) + 0.03 * rng.normal(size=(total, dim))
        rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        base, queries = rows[:count], rows[count:]
        truth = np.concatenate([_nearest(base, part) for part in np.array_split(queries, 20)])
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, rows=base, queries=queries, truth=truth)
    with np.load(path) as found:
        return found["rows"], found["queries"], found["truth"]


def _nearest(rows: np.ndarray, queries: np.ndarray) -> np.ndarray:
    scores = queries @ rows.T
    best = np.argpartition(-scores, TRUTH, axis=1)[:, :TRUTH]
    order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
    return np.take_along_axis(best, order, axis=1).astype(np.int32)
