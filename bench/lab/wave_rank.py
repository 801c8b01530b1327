"""Which estimate of a cluster's mass finds the cluster that a head looks for: ranking alone, on the probe model.

Of the heads that put over 30 % of their weight on one cluster: how many have it among the 1.8 % ranked best. ``line``
keeps the direction in which a cluster's keys spread most and its variance beside one number for the rest, ``full`` the
whole covariance: no estimate from two moments knows more. Texts are not those of the bench. Run:
``python -m bench.lab.wave_rank``.
"""

from __future__ import annotations

import itertools
from collections import Counter
from random import Random
from typing import Any

import numpy as np

from statepool.engine.attention.wave import Segment, WaveConfig
from statepool.train.probe.judge import ASKED, engine_of, score
from statepool.train.probe.questions import KINDS
from statepool.train.probe.rivals import Rival

_SHARE, _TEXTS, _LENGTH = 0.018, 12, 2048


class Study(Rival):
    """Exact for the answers' sake; counts whose rank would have found the heaviest cluster."""

    config = WaveConfig()

    def _row(self, query: Any, keys: Any, values: Any) -> Any:
        end, group = self._config.indexed(keys.shape[1]), len(query) // len(keys)
        mark = (end, keys[:, end - 1].tobytes())
        if mark != getattr(self, "mark", None):
            self.mark, self.clusters = mark, _clusters(keys[:, :end], self.config)
        for head, clusters in enumerate(self.clusters):
            q = query[head * group : (head + 1) * group] * self._head_dim**-0.5
            _count(q, clusters, np.logaddexp.reduce(q @ keys[head].T, axis=1))
        scores = (query.reshape(len(keys), group, -1) @ keys.transpose(0, 2, 1)) * self._head_dim**-0.5
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return (weights @ values / weights.sum(-1, keepdims=True)).reshape(query.shape)


found: Counter[str] = Counter()


def _clusters(keys: Any, config: WaveConfig) -> list[list[Any]]:
    """Keys of each cluster, head by head."""
    heads: list[list[Any]] = [[] for _ in keys]
    for start, stop in config.segments(keys.shape[1]):
        part = np.ascontiguousarray(keys[:, start:stop])
        segment = Segment.build(part, part, start, config)
        for head, offsets in enumerate(segment.offsets):
            for a, b in itertools.pairwise(offsets):
                if a < b:
                    heads[head].append(np.asarray(segment.rows[head][2 * a : a + b]))
    return heads


def _count(q: Any, clusters: list[Any], total: Any) -> None:
    mass = np.stack([np.logaddexp.reduce(q @ keys.T, axis=1) for keys in clusters], axis=1)
    share = np.exp(mass - total[:, None])
    if share.max() < 0.3:
        return
    wanted = np.unravel_index(share.argmax(), share.shape)[1]
    off = [keys - keys.mean(0) for keys in clusters]
    size = np.log([len(keys) for keys in clusters])
    score_of = q @ np.stack([keys.mean(0) for keys in clusters]).T
    square = (q**2).sum(1, keepdims=True)
    variances = {
        "mean": np.zeros_like(score_of),
        "iso2": square * [(x**2).mean() for x in off],
        "diag2": np.stack([q**2 @ (x**2).mean(0) for x in off], axis=1),
        "line": np.stack([_line(q, x) for x in off], axis=1),
        "full": np.stack([((q @ x.T) ** 2).mean(1) for x in off], axis=1),
    }
    found["heads"] += 1
    for name, v in variances.items():
        estimate = score_of + np.where(v <= 2 * size, v / 2, np.sqrt(2 * v * size) - size) + size
        rank = np.exp(estimate - np.logaddexp.reduce(estimate, axis=1)[:, None]).sum(0)
        found[name] += wanted in np.argsort(-rank)[: max(round(_SHARE * len(clusters)), 1)]


def _line(q: Any, off: Any) -> Any:
    _, s, directions = np.linalg.svd(off, full_matrices=False)
    along = (q @ directions[0]) ** 2
    rest = (s[1:] ** 2).sum() / (q.shape[1] - 1)
    return (along * s[0] ** 2 + ((q**2).sum(1) - along) * rest) / len(off)


def main() -> None:
    """Print a line per size of clusters."""
    for tokens in (16, 8, 4):
        found.clear()
        engine = engine_of("probe", "oracle", 1.0)
        runner: Any = engine.runner
        Study.config = WaveConfig(tokens_per_cluster=tokens)
        for backend in set(runner.backends):
            backend.__class__ = Study
        kinds = list(KINDS.values())
        texts = [kinds[i % 2](Random(f"choose:{i}"), _LENGTH, 192, ASKED) for i in range(_TEXTS)]
        right = score("exact", engine, texts).share
        shares = ", ".join(f"{name} {n / found['heads']:.3f}" for name, n in found.items() if name != "heads")
        print(f"{tokens} tokens per cluster, {found['heads']} heads (answers {right:.3f}): {shares}", flush=True)


if __name__ == "__main__":
    main()
