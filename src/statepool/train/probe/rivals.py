"""Other ways to choose what is read, as plain NumPy: for their answers, not for their speed.

Each reads sink and local tokens plus as many bytes of the rest as the wave index at the same share of clusters: its
tokens, and its tables of centroids and means counted as tokens, less what the other's own tables take. The oracle reads
as many tokens as the wave index does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from statepool.engine.attention.wave.config import WaveConfig
from statepool.engine.batch import Batch
from statepool.engine.config import EngineConfig
from statepool.engine.engine import Engine
from statepool.kv.layout import BLOCK_SIZE, tokens_of

F32 = npt.NDArray[np.float32]
RIVALS = ("oracle", "quest", "moba-gate", "streaming", "random")
TABLES = (1 + WaveConfig().estimate) / 2
"""What a step reads of a cluster's tables, in tokens: a centroid, and a mean where it is estimated, half one each."""
_OWN_TABLES = {"quest": 1 / BLOCK_SIZE, "moba-gate": 1 / 2 / BLOCK_SIZE}
"""What others keep and read of every page, in tokens per token."""


class Rival:
    """An attention backend for one kind of choice.

    ``oracle`` takes the keys of the largest weight, ``quest`` pages of 16 by the bound of their smallest and largest
    coordinates, ``moba-gate`` pages of 16 by their mean key, ``streaming`` the newest, ``random`` any.
    """

    def __init__(
        self, kind: str, share: float, tokens_per_cluster: int, exact: Any, storage: npt.NDArray[Any], head_dim: int
    ) -> None:
        self.name = kind
        tables = 0.0 if kind == "oracle" else TABLES / tokens_per_cluster - _OWN_TABLES.get(kind, 0.0)
        self._share = share + max(tables, 0.0)
        self._exact, self._storage, self._head_dim = exact, storage, head_dim
        self._config = WaveConfig()

    @classmethod
    def engine(cls, model: str, kind: str, share: float, tokens_per_cluster: int) -> Engine:
        """An engine whose layers all choose this way, with the bytes of such a wave index."""
        engine = Engine(EngineConfig(model=model, quant="fp32", attention="wave"))
        runner: Any = engine.runner
        exact = runner.backends[0]._exact
        runner.backends[:] = [
            cls(kind, share, tokens_per_cluster, exact, runner.storage, runner.decoder.head_dim)
        ] * len(runner.backends)
        return engine

    def attend(self, layer: int, query: F32, batch: Batch, out: F32) -> None:
        """See ``Backend.attend``; rows of the one sequence behind its exact tokens are computed here."""
        self._exact.attend(layer, query, batch, out)
        first = int(batch.context_len[0]) - len(query)
        for row in range(max(batch.contexts[0].exact - first, 0), len(query)):
            count = first + row + 1
            blocks = batch.block_tables[0, : -(-count // BLOCK_SIZE)]
            keys, values = (part[:, :count] for part in tokens_of(self._storage, layer, blocks))
            out[row] = self._row(query[row].reshape(-1, self._head_dim), keys, values).reshape(-1)

    def _row(self, query: F32, keys: F32, values: F32) -> F32:
        group, count = len(query) // len(keys), keys.shape[1]
        end = self._config.indexed(count)
        out = np.empty_like(query)
        for head in range(len(keys)):
            q = query[head * group : (head + 1) * group]
            seen = np.zeros(count, bool)
            seen[: self._config.sink] = seen[end:] = True
            if end:
                seen[self._chosen(q, keys[head, :end], round(self._share * end))] = True
            scores = q @ keys[head, seen].T * self._head_dim**-0.5
            weights = np.exp(scores - scores.max(1, keepdims=True))
            out[head * group : (head + 1) * group] = weights @ values[head, seen] / weights.sum(1, keepdims=True)
        return out

    def _chosen(self, q: F32, keys: F32, budget: int) -> npt.NDArray[Any]:
        if self.name == "streaming":
            return np.arange(len(keys) - budget, len(keys))
        if self.name == "random":
            return np.random.default_rng(len(keys)).permutation(len(keys))[:budget]
        scale = self._head_dim**-0.5
        if self.name == "oracle":
            return np.argsort(-_softmax(q @ keys.T * scale), kind="stable")[:budget]
        pages = keys.reshape(-1, BLOCK_SIZE, self._head_dim)
        if self.name == "moba-gate":
            scores = q @ pages.mean(1).T
        else:
            scores = np.maximum(q[:, None] * pages.min(1), q[:, None] * pages.max(1)).sum(2)
        best = np.argsort(-_softmax(scores * scale), kind="stable")[: max(budget // BLOCK_SIZE, 1)]
        return (best[:, None] * BLOCK_SIZE + np.arange(BLOCK_SIZE)).ravel()


def _softmax(scores: F32) -> F32:
    """Summed over the vectors of a group."""
    weights = np.exp(scores - scores.max(1, keepdims=True))
    total: F32 = (weights / weights.sum(1, keepdims=True)).sum(0)
    return total
