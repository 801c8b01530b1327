"""What a policy may see: a request before it runs, and the cluster at one moment, as plain numbers.

Nothing here has a clock or a handle. Times are seconds from the moment of the snapshot unless said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = [
    "SLO",
    "Admission",
    "Ask",
    "Completion",
    "Decision",
    "DecodePool",
    "Line",
    "Placement",
    "PrefillPool",
    "Snapshot",
    "Underway",
    "worst_tenth",
]


@dataclass(frozen=True, slots=True)
class SLO:
    """What a request was promised."""

    ttft_s: float = 30.0
    """Seconds from arrival to the first token."""
    tbt_s: float = 0.1
    """Seconds between tokens: the mean of the longest tenth of a request's gaps."""


def worst_tenth(gaps: npt.ArrayLike) -> float:
    """The mean of the longest tenth of ``gaps``, at least one of them; 0 without gaps (FAST'25, section 5.2)."""
    ordered = np.sort(np.asarray(gaps, np.float64))
    return float(ordered[-max(1, round(len(ordered) / 10)) :].mean()) if len(ordered) else 0.0


@dataclass(frozen=True, slots=True)
class Ask:
    """A request as it arrives. How long its answer will be is not known."""

    id: int
    """Number in order of arrival."""
    at: float
    """Seconds on the cluster's clock, when it is asked."""
    tokens: int
    """Length of the prompt."""
    priority: int = 0
    """Higher is served earlier by placements that order lines by size."""
    waited_s: float = 0.0
    """Seconds since it arrived, for one that was kept and asks again; its promise runs from then."""


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """The waiting prefills of one node, in the order in which they will run."""

    ranks: np.ndarray
    """float64 [w], ascending."""
    ahead_s: np.ndarray
    """float64 [w + 1]: seconds of work of the first i."""
    slack_s: np.ndarray
    """float64 [w + 1]: by how much the tightest of those from i on may be delayed; infinite at the end."""


@dataclass(frozen=True, slots=True, eq=False)
class PrefillPool:
    """The prefill nodes, one entry each; behind them the decode nodes, if the placement has prefills there too."""

    queue_s: np.ndarray
    """float64: estimated seconds until what is queued is done, the running prefill included."""
    busy_s: np.ndarray
    """float64: seconds until the piece of prefill that runs now gives way."""
    queued_tokens: np.ndarray
    """int64: queued prompt tokens that must be computed."""
    queued_context: np.ndarray
    """int64: queued prompt tokens, cached ones included."""
    held: np.ndarray
    """int64: leading tokens of the asking prompt whose blocks the node holds, or will hold once its line is done."""
    ready: np.ndarray
    """int64: those it holds now, so that others may copy them."""
    after_rank: np.ndarray
    """float64: rank of the queued prefill that the blocks in ``held`` wait for; -inf if they are there."""
    link_s: np.ndarray
    """float64: seconds until the node's network link has sent what it was told to."""
    stretch: np.ndarray
    """float64: by how much prefills take longer than on an idle prefill node; infinite where none may run."""
    lines: tuple[Line, ...] = ()
    """For placements with ``chunk_tokens``."""


@dataclass(frozen=True, slots=True)
class Underway:
    """A request that a decode node runs, or will run once its prefill is done."""

    decode: int
    in_s: float
    """Seconds until it joins; for one that runs, minus the seconds since it joined."""
    tokens: int
    """Tokens it holds, or will hold when it joins."""
    written: int
    """Answer tokens it has."""


@dataclass(frozen=True, slots=True, eq=False)
class DecodePool:
    """The decode nodes, one entry each: what runs, and what is on its way from prefill."""

    batch: np.ndarray
    tokens: np.ndarray
    coming: np.ndarray
    coming_tokens: np.ndarray
    underway: tuple[Underway, ...] = ()
    """One by one, for policies that look ahead (``wants_underway``)."""


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """The cluster at one moment."""

    prefill: PrefillPool
    decode: DecodePool


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a request goes, and what its policy expects of it."""

    prefill: int
    decode: int
    reuse: int
    """Leading tokens that will not be computed."""
    source: int = -1
    """Node to copy missing blocks from; -1 if none."""
    fetched: int = 0
    """Tokens to copy."""
    rank: float = 0.0
    """Place in the node's line: lower runs earlier."""
    prefill_s: float = 0.0
    ttft_s: float = 0.0
    tbt_s: float = 0.0
    refused: str = ""
    """Why the request is refused with 429; empty if it is not."""
    retry_after_s: float = 0.0
    ask_again_s: float = 0.0
    """If it is refused: above 0, the request is kept, not answered, and asks again after so many seconds."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What became known when a request ended."""

    prompt: int
    output: int


class Placement(Protocol):
    """Chooses the nodes of a request."""

    @property
    def chunk_tokens(self) -> int:
        """Tokens after which a running prefill gives way to one of lower rank; 0 for never."""
        ...

    @property
    def layers_at_once(self) -> int:
        """Layers after which a running prefill of a prefill node gives way, in the place of tokens; 0 for never."""
        ...

    @property
    def inline(self) -> bool:
        """Whether prefills also run on decode nodes, a piece per decode step."""
        ...

    def place(self, ask: Ask, now: Snapshot) -> Decision:
        """The nodes that are to run ``ask``. Pure."""
        ...


class Admission(Protocol):
    """Refuses what would not keep its promise."""

    @property
    def wants_underway(self) -> bool:
        """Whether ``DecodePool.underway`` is needed."""
        ...

    def refusal(self, ask: Ask, decision: Decision, now: Snapshot) -> str:
        """Why ``ask`` is refused on arrival; empty if it is not. Pure."""
        ...

    def ask_again_s(self, ask: Ask, decision: Decision) -> float:
        """After how many seconds a refused ``ask`` is asked again; 0 if the refusal is final. Pure."""
        ...

    def late_refusal(self, tokens: int, batch: int, held: int) -> str:
        """Why a decode node refuses a finished prefill of ``tokens`` beside ``batch`` others; empty if it does not."""
        ...

    def told(self, ended: Completion) -> Admission:
        """The policy that has also seen ``ended``."""
        ...
