"""Which slot a request gets, and how many wait ready: pure functions of a snapshot (TrEnv's start kinds)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Choice", "NodeLoad", "Parked", "by_room", "choose", "cleans", "returns_soon", "wanted"]

Kind = Literal["reuse", "switch", "cold"]


@dataclass(frozen=True, slots=True)
class Parked:
    """A clean slot that waits: whose template's memory it has, whose tenant it last served, since when, how often
    used.
    """

    template: str
    domain: str | None
    since: float
    uses: int


@dataclass(frozen=True, slots=True)
class Choice:
    """``reuse`` the parked slot ``index``; ``switch`` it to another template; or start ``cold``."""

    kind: Kind
    index: int = -1
    fresh_network: bool = False


def choose(parked: Sequence[Parked], template: str, domain: str | None, slots: int, most: int) -> Choice | None:
    """The cheapest start that keeps trust domains apart; None if all ``most`` slots are busy.

    A slot that served another domain gets a new network first. Another template's slot costs a new PID 1.
    """
    same = [i for i, slot in enumerate(parked) if slot.template == template]
    if same:
        trusted = [i for i in same if parked[i].uses == 0 or parked[i].domain == domain]
        index = max(trusted or same, key=lambda i: parked[i].since)  # the warmest
        return Choice("reuse", index, fresh_network=not trusted)
    if slots < most:
        return Choice("cold")
    if parked:
        return Choice("switch", min(range(len(parked)), key=lambda i: parked[i].since))
    return None


def returns_soon(out: int, asking: int, lease_seconds: float, start_seconds: float, waited: float) -> bool:
    """Whether to wait for one of the ``out`` slots of a template that are in use, rather than make another.

    One comes back every ``lease_seconds / out``, and ``asking`` want it. Who has waited as long as a start takes
    waits no more: that is twice the best at most.
    """
    return waited < start_seconds and asking * lease_seconds < out * start_seconds


def cleans(young: int, cores: int, ready: int, low: int) -> bool:
    """Whether a slot that was given back is cleaned at once. That takes a core for milliseconds: where as many tenants
    have just come, it waits, as long as more slots are ready than must be.
    """
    return young < cores or ready <= low


def wanted(low: int, high: int, fewer: int) -> int:
    """How many slots of a template should wait: as many as are in use ``fewer`` than at the busiest moment lately,
    within bounds.
    """
    return max(low, min(high, fewer))


@dataclass(frozen=True, slots=True)
class NodeLoad:
    """A node of several: how many sandboxes it has, and how many it may have."""

    name: str
    live: int
    most: int


def by_room(nodes: Sequence[NodeLoad]) -> list[str]:
    """Names of the nodes, the emptiest first, of equal ones the first in ``nodes``; the order to ask them in, since
    what is known of a node is a moment old: only it can say that it is full.
    """
    return [node.name for node in sorted(nodes, key=lambda node: node.live / node.most)]
