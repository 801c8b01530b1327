"""V18 and V19: the keys of a model's attention heads, and passages that an agent asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.row import Row
from bench.vector import data
from bench.vector.claims import built, measured

F32 = npt.NDArray[np.float32]
TOP, SHARE, STEPS = 0.025, 0.05, 48
"""Shares of the keys that are to be found and that may be read, and tokens at a text's end that ask."""
TEXTS = {"probe": 3900, "tiny": 1900}
"""Bundled models and the tokens of a text, near the most that each was trained for."""
K = 10


def run(wanted: Callable[[str], bool], quick: bool) -> Iterator[Row]:
    """The wanted rows; ``quick`` takes fewer texts and queries."""
    yield from measured({"V18": _keys, "V19": _passages}, wanted, quick)


@dataclass(slots=True)
class _Taps:
    """Stands before a model's attention and keeps what every layer asks and has in the end."""

    exact: Any
    storage: npt.NDArray[Any]
    head_dim: int
    queries: dict[int, list[F32]] = field(default_factory=dict)
    rows: dict[int, tuple[F32, F32]] = field(default_factory=dict)
    name: str = "full"

    def attend(self, layer: int, query: F32, batch: Any, out: F32) -> None:
        """See ``Backend.attend``."""
        from statepool.kv.layout import BLOCK_SIZE, tokens_of

        self.exact.attend(layer, query, batch, out)
        self.queries.setdefault(layer, []).append(query.reshape(len(query), -1, self.head_dim).copy())
        count = int(batch.context_len[0])
        keys, values = tokens_of(self.storage, layer, batch.block_tables[0, : -(-count // BLOCK_SIZE)])
        self.rows[layer] = keys[:, :count].astype(np.float32), values[:, :count].astype(np.float32)


def _heads(model: str, count: int) -> Iterator[tuple[F32, F32, F32]]:
    """Of every text, layer and KV head: keys and values ``[n, d]``, queries ``[n, group, d]`` of a real prefill."""
    from statepool.engine.config import EngineConfig
    from statepool.engine.engine import Engine
    from statepool.engine.request import Request, SamplingParams
    from statepool.train.probe.judge import questions

    for number, question in enumerate(questions(model, count, TEXTS[model])):
        engine = Engine(EngineConfig(model=model, quant="fp32"))
        runner: Any = engine.runner
        taps = _Taps(runner.backends[0], runner.storage, runner.decoder.head_dim)
        runner.backends[:] = [taps] * len(runner.backends)
        request = Request(f"t{number}", question.tokens, SamplingParams(max_tokens=1))
        engine.generate([request])
        for layer, (keys, values) in taps.rows.items():
            asked = np.concatenate(taps.queries[layer])[: keys.shape[1]]
            group = asked.shape[1] // len(keys)
            for head in range(len(keys)):
                yield keys[head], values[head], asked[:, head * group : (head + 1) * group]


def _attention(queries: F32, keys: F32, values: F32) -> npt.NDArray[np.float64]:
    scores = queries.astype(np.float64) @ keys.astype(np.float64).T * queries.shape[1] ** -0.5
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    answer: npt.NDArray[np.float64] = weights @ values.astype(np.float64) / weights.sum(axis=1, keepdims=True)
    return answer


def _far(got: npt.NDArray[Any], exact: npt.NDArray[Any]) -> list[float]:
    found: list[float] = (np.linalg.norm(got - exact, axis=1) / np.linalg.norm(exact, axis=1)).tolist()
    return found


def _keys(quick: bool) -> Iterator[Row]:
    """The tokens before the last ``STEPS`` are indexed, with their own queries; the last ones ask."""
    from statepool.engine.attention.wave import WaveConfig, WaveIndex
    from statepool.vector import KVIndex

    config, wide = WaveConfig(), WaveConfig(retrieve=SHARE, least=0)
    hits: dict[str, list[float]] = {}
    errors: dict[str, list[float]] = {"lists": [], "graph": [], "wave": []}
    read: list[float] = []
    texts = 1 if quick else 4
    for model in TEXTS:
        for keys, values, queries in _heads(model, texts):
            end = len(keys) - STEPS
            keys, values, known = keys[:end], values[:end], queries[:end].reshape(-1, keys.shape[1])
            ways = {"lists": KVIndex.build(keys, known), "graph": KVIndex.build(keys)}
            wave = WaveIndex.build(keys[None], values[None], wide)
            budget, wanted = round(SHARE * end), round(TOP * end)
            for group in queries[end : end + STEPS : 4 if quick else 1]:
                step = wave.decode(group, trace=True)
                assert step.zones is not None
                tokens = wave.cost(step.zones).tokens
                exact = _attention(group, keys, values)
                read.append(tokens / end)
                errors["wave"] += _far(step.out, exact)
                best = np.argsort(-(group.astype(np.float64) @ keys.T.astype(np.float64)), axis=1)[:, :wanted]
                for name, index in ways.items():
                    errors[name] += _far(index.attend(group, values, tokens), exact)
                    for query, nearest in zip(group, best, strict=True):
                        found = index.search(query[None], budget)
                        hits.setdefault(f"{name} {model}", []).append(len(np.intersect1d(found, nearest)) / wanted)
    recalls = {name: float(np.mean(found)) for name, found in hits.items()}
    means = {name: float(np.mean(found)) for name, found in errors.items()}
    worst = min(value for name, value in recalls.items() if name.startswith("lists"))
    note = "; ".join(f"{name} {value:.3f}" for name, value in recalls.items())
    heads = f"{len(errors['wave'])} queries of the bundled models' heads, texts of each: {texts}"
    what = f"recall of the nearest {TOP:.1%} of the keys, {SHARE:.0%} of them scored, the worse of two models"
    yield Row("V18-recall", what, "", "higher", 0.85, worst, f"{worst:.3f}", note=f"{heads}; {note}")
    what = f"relative error of attention over as many keys as a wave index reads ({np.mean(read):.0%}), over its error"
    note = f"{heads}; " + "; ".join(f"{name} {value:.4f}" for name, value in means.items())
    note += f"; the wave index also estimates {config.estimate:.0%} of its clusters"
    yield Row("V18-error", what, "x", "lower", 1.0, means["lists"] / means["wave"], f"{means['lists']:.4f}",
              peer="wave index", peer_value=means["wave"], note=note)  # fmt: skip


def _passages(quick: bool) -> Iterator[Row]:
    """Which file a passage is from is not part of the set, so what counts is the passage nearest to a heading."""
    from statepool.vector import RetrievalTool

    count = 5000 if quick else 20_000
    headings = data.load("head")[1][: 200 if quick else 1000]
    index = built("f32", True, count)
    tool = RetrievalTool(index, lambda text: headings[int(text)], {number: str(number) for number in range(count)})
    first = tenth = 0
    for number, heading in enumerate(headings):
        exact = index.exact(heading, K).ids
        found = [one["id"] for one in tool(str(number), k=K)]
        first += int(exact[0]) in found
        tenth += len(np.intersect1d(found, exact))
    lost = 100 * (1 - first / len(headings))
    what = (
        f"points of headings whose nearest passage is not among the {K} that the agent's tool gives, {count} passages"
    )
    text = f"{first} of {len(headings)}; {tenth / len(headings) / K:.4f} of the nearest {K}"
    yield Row("V19", what, "points", "lower", 0.5, lost, text)
