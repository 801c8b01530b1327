"""Chunked pipeline parallelism: one long prefill over several nodes, each with a share of the layers (Mooncake, 5.1).

Chunks flow through the stages one behind the other. With equal stages this is a permutation flow shop: its length is
the work of all chunks at one stage, plus the longest chunk once for every further stage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from statepool.core.errors import InvalidConfig
from statepool.serve.costs import NodeCosts

__all__ = ["chunk_borders", "makespan_s", "uniform_borders"]


def uniform_borders(tokens: int, cached: int, chunk: int) -> list[int]:
    """Borders of chunks of ``chunk`` tokens from ``cached`` to ``tokens``, both included."""
    return [*range(cached, tokens, chunk), tokens]


def chunk_borders(costs: NodeCosts, tokens: int, cached: int, stages: int) -> list[int]:
    """Borders of chunks that take equally long, as many as make the pipeline shortest.

    Attention makes a later token dearer, so that equal chunks of tokens leave the last as the longest, and the longest
    is what every stage but one waits for. With m chunks of equal time the length is (T + m c0 + (s - 1) (T / m + c0))
    / s, least at m = sqrt((s - 1) T / c0), where T is the work without the constant c0 of each chunk.

    Raises:
        InvalidConfig: no stage, or nothing to compute.
    """
    if stages < 1:
        raise InvalidConfig(f"stages is {stages}; it must be at least 1", param="stages")
    if not 0 <= cached < tokens:
        raise InvalidConfig(f"cached is {cached}; it must be from 0 to below tokens ({tokens})", param="cached")
    c0, c1, c2 = costs.prefill
    work_s = costs.prefill_s(tokens, cached) - c0
    count = max(1, min(tokens - cached, round(math.sqrt((stages - 1) * work_s / c0)))) if stages > 1 else 1
    borders = [cached]
    for part in range(1, count):
        # c1 (x - p) + c2 (x^2 - p^2) = part / count of the work, solved for x.
        target = c1 * cached + c2 * cached * cached + work_s * part / count
        x = (-c1 + math.sqrt(c1 * c1 + 4 * c2 * target)) / (2 * c2) if c2 else target / c1
        borders.append(min(tokens - 1, max(borders[-1] + 1, round(x))))
    return [*dict.fromkeys(borders), tokens]


def makespan_s(costs: NodeCosts, borders: Sequence[int], stages: int) -> float:
    """Seconds until the last chunk has left the last of ``stages`` equal stages."""
    chunks = [costs.prefill_s(end, start) for start, end in pairwise(borders)]
    return (sum(chunks) + (stages - 1) * max(chunks)) / stages
