"""Clustered vectors of low intrinsic dimension: like embeddings, unlike uniform noise, which no graph can search."""

from __future__ import annotations

import numpy as np


def clustered(count: int, dim: int, queries: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Float32 rows ``[count, dim]`` and queries ``[queries, dim]`` of one distribution."""
    rng = np.random.default_rng(seed)
    clusters, latent = 20, 12
    centers = rng.normal(size=(clusters, latent)) * 1.5
    lift = rng.normal(size=(latent, dim)) / np.sqrt(latent)
    total = count + queries
    points = centers[rng.integers(clusters, size=total)] + rng.normal(size=(total, latent)) * 0.6
    rows = np.tanh(points @ lift) + rng.normal(size=(total, dim)) * 0.02
    return rows[:count].astype(np.float32), rows[count:].astype(np.float32)


def distances(metric: str, rows: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """All distances ``[queries, rows]`` in float64, the slow and obvious way."""
    x, q = rows.astype(np.float64), queries.astype(np.float64)
    if metric == "cos":
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        q = q / np.linalg.norm(q, axis=1, keepdims=True)
        return 1.0 - q @ x.T
    if metric == "ip":
        return -(q @ x.T)
    return ((q[:, None, :] - x[None, :, :]) ** 2).sum(axis=2)


def recall(found: list[np.ndarray], truth: np.ndarray) -> float:
    """Share of the true nearest that were found; ``truth`` is ``[queries, k]``."""
    hits = sum(len(set(ids.tolist()) & set(best.tolist())) for ids, best in zip(found, truth, strict=True))
    return hits / truth.size
