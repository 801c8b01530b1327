"""A finished iteration in figures, among them those that keep a comparison honest: accuracy, lengths, drafts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from statepool.rollout.live import Rollout
from statepool.tasks.base import Problem, Task

__all__ = ["Summary", "summary"]


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures of an iteration.

    Attributes:
        tail_s: seconds after nine tenths of the responses had ended.
        accuracy: mean verdict of the task; None without one.
        correlation: share of the variance of log length that lies between groups, 0 to 1; None if lengths are equal.
        distinct: different 4-grams per 4-gram; near 0 means that texts loop.
        accepted: tokens per drafting step beyond the first, as accepted / drafted.
        scores: verdict of each response.
    """

    responses: int
    tokens: int
    seconds: float
    tokens_per_s: float
    tail_s: float
    chunks: int
    preemptions: int
    refilled: int
    drafted: int
    accepted: int
    accuracy: float | None
    correlation: float | None
    distinct: float
    at_limit: int
    scores: dict[tuple[str, int], float]

    def as_json(self) -> dict[str, Any]:
        """Without the single verdicts."""
        found = asdict(self)
        del found["scores"]
        return found

    def text(self) -> str:
        """For people."""
        share = f"{self.accepted / self.drafted:.0%} of {self.drafted} drafts held" if self.drafted else "no drafts"
        accuracy = "" if self.accuracy is None else f", accuracy {self.accuracy:.1%}"
        correlation = "equal lengths" if self.correlation is None else f"correlation of lengths {self.correlation:.2f}"
        return (
            f"{self.responses} responses, {self.tokens} tokens in {self.seconds:.2f} s: "
            f"{self.tokens_per_s:.0f} tokens/s, the last tenth took {self.tail_s:.2f} s{accuracy}\n"
            f"{self.chunks} chunks, {self.preemptions} preemptions, {self.refilled} tokens computed again; {share}; "
            f"{correlation}, {self.at_limit} at the limit, distinct 4-grams {self.distinct:.2f}"
        )


def summary(done: Rollout, problems: Mapping[str, Problem], tasks: Mapping[str, Task]) -> Summary:
    """Figures of ``done``; ``problems`` by group, ``tasks`` by the name that problems have."""
    scores = {}
    for response in done.responses:
        problem = problems.get(response.group)
        if problem is not None:
            scores[response.group, response.index] = tasks[problem.task].verify(problem, response.text).score
    ends = sorted(response.chunks[-1].ended for response in done.responses if response.chunks)
    tail = done.seconds - ends[math.ceil(0.9 * len(ends)) - 1] if ends else 0.0
    return Summary(
        responses=len(done.responses),
        tokens=done.tokens,
        seconds=done.seconds,
        tokens_per_s=done.tokens / done.seconds if done.seconds else 0.0,
        tail_s=tail,
        chunks=done.decisions,
        preemptions=done.preemptions,
        refilled=done.refilled,
        drafted=sum(response.drafted for response in done.responses),
        accepted=sum(response.accepted for response in done.responses),
        accuracy=sum(scores.values()) / len(scores) if scores else None,
        correlation=length_correlation([[len(r.tokens) for r in group] for group in done.by_group().values()]),
        distinct=_distinct([response.tokens for response in done.responses]),
        at_limit=sum(response.finish_reason == "length" for response in done.responses),
        scores=scores,
    )


def length_correlation(groups: Sequence[Sequence[int]]) -> float | None:
    """Intra-class correlation of log lengths (one-way analysis of variance); None if all are equal or alone."""
    logs = [np.log(np.maximum(np.array(group, float), 1)) for group in groups if len(group) > 1]
    total = sum(len(group) for group in logs)
    if len(logs) < 2 or total == len(logs):
        return None
    mean = float(np.concatenate(logs).mean())
    between = sum(len(group) * (float(group.mean()) - mean) ** 2 for group in logs) / (len(logs) - 1)
    within = sum(float(((group - group.mean()) ** 2).sum()) for group in logs) / (total - len(logs))
    size = (total - sum(len(group) ** 2 for group in logs) / total) / (len(logs) - 1)
    whole = between + (size - 1) * within
    return None if whole == 0 else max((between - within) / whole, 0.0)


def _distinct(texts: Sequence[Sequence[int]]) -> float:
    grams = [tuple(text[i : i + 4]) for text in texts for i in range(len(text) - 3)]
    of_each = sum(len({tuple(text[i : i + 4]) for i in range(len(text) - 3)}) for text in texts)
    return of_each / len(grams) if grams else 1.0
