"""A prefill group at work: chunks pass from stage to stage, each of which computes one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from statepool.serve.costs import NodeCosts
from statepool.sim.events import Events

__all__ = ["run_pipeline"]


def run_pipeline(costs: NodeCosts, borders: Sequence[int], stages: int, hop_s: float = 0.0) -> float:
    """Seconds until the last chunk between ``borders`` has left the last stage.

    Args:
        costs: of one node that would compute all layers; a stage has one of ``stages`` equal shares.
        borders: where chunks begin and end, in tokens.
        stages: nodes of the group.
        hop_s: seconds that a chunk travels between stages.
    """
    events = Events()
    chunks = [costs.prefill_s(end, start) / stages for start, end in pairwise(borders)]
    free_at = [0.0] * stages
    done: list[float] = []

    def arrive(chunk: int, stage: int) -> None:
        begin = max(events.now, free_at[stage])
        free_at[stage] = begin + chunks[chunk]
        if stage + 1 < stages:
            events.at(free_at[stage] + hop_s, arrive, chunk, stage + 1)
        else:
            done.append(free_at[stage])

    for chunk in range(len(chunks)):
        events.at(0.0, arrive, chunk, 0)
    events.run()
    return max(done)
