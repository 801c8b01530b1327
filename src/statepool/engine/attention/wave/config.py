"""Settings of a wave index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from statepool.core.errors import InvalidConfig

Estimator = Literal["mean", "iso2", "diag2"]
ORDERS: dict[str, int] = {"mean": 0, "iso2": 1, "diag2": 2}
"""Terms of the estimate of a cluster's mass: the centroid alone, one variance, one variance per dimension."""


@dataclass(frozen=True, slots=True)
class WaveConfig:
    """How a context is clustered and how much of it a step reads. The paper's values unless said otherwise.

    Args:
        tokens_per_cluster: tokens per centroid.
        segment: tokens of the largest segment; clusters never cross a segment's border.
        update_segment: tokens of the smallest; the index grows by so many at a time. ``segment`` is this times a
            power of two. (Paper: 1024, never merged. Here segments double as they fill, so less stays outside.)
        shortest: contexts with fewer tokens to cluster are read whole: there is little to gain in them.
        iterations: rounds of k-means. (Paper: 10; the second five change no answer that we could count.)
        sink: first tokens, always read.
        local: newest tokens, always read; so is what does not fill an update segment yet.
        retrieve: share of the clusters that are read whole.
        least: so many clusters are at least: a small share of a short context is next to nothing. (Paper: none.)
        estimate: share of the clusters that count by their centroid; the rest is left out.
        estimator: ``mean`` as in the paper; ``iso2`` and ``diag2`` add the second-order term of the spread.
        rank: what chooses clusters: ``softmax`` of the centroids' scores as in the paper, or ``mass``, which also
            counts how many keys a cluster holds.
        eps: in the engine, read on until every head is proved to be within this Euclidean distance of exact attention;
            0 asks for no proof. See ``certificate``.

    Raises:
        InvalidConfig: a value is impossible.
    """

    tokens_per_cluster: int = 16
    segment: int = 8192
    update_segment: int = 256
    shortest: int = 1024
    iterations: int = 5
    sink: int = 4
    local: int = 64
    retrieve: float = 0.018
    least: int = 16
    estimate: float = 0.232
    estimator: Estimator = "iso2"
    rank: Literal["softmax", "mass"] = "mass"
    eps: float = 0.0

    def __post_init__(self) -> None:
        for name in ("tokens_per_cluster", "update_segment", "segment", "iterations"):
            if getattr(self, name) < 1:
                raise InvalidConfig(f"{name} must be at least 1, got {getattr(self, name)}", param=name)
        for name in ("sink", "local", "shortest", "least"):
            if getattr(self, name) < 0:
                raise InvalidConfig(f"{name} must not be negative, got {getattr(self, name)}", param=name)
        for name in ("retrieve", "estimate"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidConfig(f"{name} must be between 0 and 1, got {getattr(self, name)}", param=name)
        if not 0 <= self.eps < float("inf"):
            raise InvalidConfig(f"eps must be a number from 0 on, got {self.eps}", param="eps")
        if self.estimator not in ORDERS:
            raise InvalidConfig(
                f"estimator must be one of {', '.join(ORDERS)}, got {self.estimator!r}", param="estimator"
            )
        if self.rank not in ("softmax", "mass"):
            raise InvalidConfig(f"rank must be softmax or mass, got {self.rank!r}", param="rank")
        times, rest = divmod(self.segment, self.update_segment)
        if rest or times & (times - 1):
            raise InvalidConfig(
                f"segment ({self.segment}) must be update_segment ({self.update_segment}) times a power of two",
                param="segment",
            )
        if self.update_segment < 2 * self.tokens_per_cluster or self.update_segment <= self.sink:
            raise InvalidConfig("update_segment must hold at least two clusters and the sink", param="update_segment")

    @classmethod
    def paper(cls, **changes: object) -> WaveConfig:
        """The published system's settings (RetroInfer 4, 5.1): estimate by the mean, rank by softmax."""
        published = {"update_segment": 1024, "iterations": 10, "least": 0, "estimator": "mean", "rank": "softmax"}
        return cls(**{**published, **changes})  # type: ignore[arg-type]

    def indexed(self, tokens: int) -> int:
        """How many of ``tokens`` leading tokens are in segments; the rest is read as it is."""
        enough = max(tokens - self.local, 0) // self.update_segment * self.update_segment
        return enough if enough >= self.shortest else 0

    def segments(self, end: int) -> list[tuple[int, int]]:
        """Borders (start, stop) of the segments of ``end`` indexed tokens.

        A function of ``end`` alone, and every segment starts at a multiple of its size: two contexts with an equal
        beginning have equal segments there, whatever way they grew.
        """
        found, at = [], 0
        while at < end:
            size = self.segment
            while at % size or at + size > end:
                size //= 2
            found.append((at, at + size))
            at += size
        return found

    def budget(self, clusters: int) -> tuple[int, int]:
        """How many of a head's ``clusters`` a step reads whole, and how many it estimates."""
        read = min(max(round(self.retrieve * clusters), self.least), clusters)
        return read, min(round(self.estimate * clusters), clusters - read)

    def pinned(self, start: int, stop: int) -> int:
        """First tokens of one segment that are in no cluster: the sink, if it is the first."""
        return min(self.sink, stop - start - 1) if start == 0 else 0

    def clusters(self, start: int, stop: int) -> int:
        """Clusters of one segment."""
        return max((stop - start) // self.tokens_per_cluster, 1)
