"""Eviction by learned reuse: the block whose best chance of a hit per second of keeping it is lowest goes first.

A cached prompt is a bet: holding it costs room until it is used again, if ever. The best stopping rule for such bets is
an index of each alone (Gittins 1979): the largest ratio, over all horizons h, of the chance of reuse within h to the
expected time held until then. The chance is learned while running, per class of prompts and by the time since the last
use: people who have come back before come back again, and nobody does within the second.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Hashable, Sequence
from typing import Generic, TypeVar

import numpy as np

__all__ = ["LikelyReuse", "gittins_table"]

K = TypeVar("K", bound=Hashable)

EDGES = np.concatenate([[0.0], 1.35 ** np.arange(2, 31)])
"""Borders of age in seconds, up to two hours."""

_CLASSES = 17
_CONTINUED = 16
"""What a prompt leaves behind when a longer one has taken over its blocks: used again by a fork at most."""

_REMEMBERED = 8192
"""Prompts whose fate teaches; twice the turns of an hour on the published traces."""

_RELEARN = 64
_PRIOR_S = 20.0
"""Weight of what is assumed before anything was seen: a chance of reuse that falls with age, as LRU assumes."""


def gittins_table(events: np.ndarray, exposure_s: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The index at the start of each age: [classes, ages] in reuses per second.

    Args:
        events: reuses seen in each age, [classes, ages].
        exposure_s: seconds that prompts spent in each age unused, [classes, ages].
        edges: where each age begins, [ages]; the last one has no end and counts as long as all before it.
    """
    widths = np.diff(np.append(edges, 2 * edges[-1]))
    hazard = events / exposure_s
    stay = np.exp(-hazard * widths)
    # Seconds spent in an age by one that enters it, reused at a constant rate.
    held = np.where(hazard > 0, (1 - stay) / np.where(hazard > 0, hazard, 1.0), widths)
    table: np.ndarray = np.empty_like(hazard)
    for start in range(len(edges)):
        alive = np.cumprod(np.concatenate([np.ones((len(hazard), 1)), stay[:, start:-1]], axis=1), axis=1)
        hits = np.cumsum(alive * (1 - stay[:, start:]), axis=1)
        time = np.cumsum(alive * held[:, start:], axis=1)
        table[:, start] = (hits / time).max(axis=1)
    return table


class _Prompt(Generic[K]):
    """The blocks of one prompt, and when they were used."""

    __slots__ = ("at", "ended", "keys", "kind", "slot", "turn")

    def __init__(self, keys: list[K], at: float, kind: int, turn: int) -> None:
        self.keys = keys
        self.at = at
        self.kind = kind
        self.turn = turn
        self.ended = -1.0
        """When it was used again."""
        self.slot = -1


class LikelyReuse(Generic[K]):
    """Gives up the last block of the prompt with the lowest index; see the module."""

    def __init__(self) -> None:
        self._owner: dict[K, _Prompt[K] | None] = {}
        self._parent: dict[K, K] = {}
        self._children: dict[K, int] = {}
        self._prompts: list[_Prompt[K] | None] = []
        self._free: list[int] = []
        self._at = np.full(64, np.inf)
        self._kind = np.zeros(64, dtype=np.int64)
        self._now = 0.0
        self._order: list[int] = []
        self._ghosts: OrderedDict[K, _Prompt[K]] = OrderedDict()
        self._uses = 0
        self._table = self._learned()

    def used(self, chain: Sequence[K], at: float) -> None:
        """A prompt used ``chain``, or continued an earlier one with it."""
        if not chain:
            return
        self._now = max(self._now, at)
        known = next((depth for depth in range(len(chain), 0, -1) if chain[depth - 1] in self._ghosts), 0)
        before = self._ghosts[chain[known - 1]] if known else None
        turn = 1
        if before is not None:
            turn = before.turn + 1
            if before.ended < 0:
                before.ended = at
            if self._seated(before):
                self._kind[before.slot] = _CONTINUED
        prompt = _Prompt(list(chain), at, _kind(len(chain), turn, len(chain) - known), turn)
        # A continuation may lack the last block, which was not full; the first one is shared by strangers.
        for key in {*chain[1:][-2:], chain[-1]}:
            self._ghosts[key] = prompt
            self._ghosts.move_to_end(key)
        while len(self._ghosts) > _REMEMBERED:
            self._ghosts.popitem(last=False)
        parent: K | None = None
        for key in chain:
            if key not in self._owner and parent is not None:
                self._parent[key] = parent
                self._children[parent] = self._children.get(parent, 0) + 1
            self._owner[key] = prompt
            parent = key
        self._seat(prompt)
        self._uses += 1
        if self._uses % _RELEARN == 0:
            self._table = self._learned()
        self._order = []

    def victim(self, pinned: Container[K] = ()) -> K | None:
        """The block to give up."""
        spared: list[int] = []
        while True:
            if not self._order:
                self._order = self._lowest(spared)
                if not self._order:
                    return None
            slot = self._order[-1]
            prompt = self._prompts[slot]
            found = self._last(prompt) if prompt is not None else None
            if prompt is None or found is None:
                self._order.pop()
                if prompt is not None:
                    self._unseat(prompt)
            elif found in pinned:
                self._order.pop()
                spared.append(slot)
            else:
                prompt.keys.pop()
                self.forget(found)
                return found

    def forget(self, key: K) -> None:
        """Take ``key`` out of the order."""
        self._owner.pop(key, None)
        parent = self._parent.pop(key, None)
        if parent is not None:
            self._children[parent] -= 1
            if not self._children[parent]:
                del self._children[parent]

    def _last(self, prompt: _Prompt[K]) -> K | None:
        """The last block of ``prompt`` that it alone keeps."""
        keys = prompt.keys
        while keys:
            key = keys[-1]
            owner = self._owner.get(key, self)
            if owner is None or owner is prompt:
                if key not in self._children:
                    return key
                self._owner[key] = None  # whoever holds what follows it gives it up after that
            keys.pop()
        return None

    def _lowest(self, spared: list[int]) -> list[int]:
        """Slots of the prompts of lowest index, the lowest last."""
        count = len(self._prompts)
        age = np.maximum(self._now - self._at[:count], 0.0)
        place = np.searchsorted(EDGES, age, side="right") - 1
        index = self._table[self._kind[:count], place]
        index[~np.isfinite(self._at[:count])] = np.inf
        index[spared] = np.inf
        some = min(count, 32)
        slots = np.argpartition(index, some - 1)[:some] if some else np.zeros(0, dtype=np.int64)
        slots = slots[np.isfinite(index[slots])]
        # Of equals the older goes first.
        ordered: list[int] = slots[np.lexsort((self._at[slots], index[slots]))][::-1].tolist()
        return ordered

    def _seat(self, prompt: _Prompt[K]) -> None:
        if self._free:
            prompt.slot = self._free.pop()
            self._prompts[prompt.slot] = prompt
        else:
            prompt.slot = len(self._prompts)
            self._prompts.append(prompt)
            if prompt.slot == len(self._at):
                self._at = np.concatenate([self._at, np.full_like(self._at, np.inf)])
                self._kind = np.concatenate([self._kind, np.zeros_like(self._kind)])
        self._at[prompt.slot] = prompt.at
        self._kind[prompt.slot] = prompt.kind

    def _unseat(self, prompt: _Prompt[K]) -> None:
        self._prompts[prompt.slot] = None
        self._at[prompt.slot] = np.inf
        self._free.append(prompt.slot)

    def _seated(self, prompt: _Prompt[K]) -> bool:
        return prompt.slot < len(self._prompts) and self._prompts[prompt.slot] is prompt

    def _learned(self) -> np.ndarray:
        past = list({id(prompt): prompt for prompt in self._ghosts.values()}.values())
        at = np.array([prompt.at for prompt in past])
        kind = np.array([prompt.kind for prompt in past], dtype=np.int64)
        end = np.array([prompt.ended for prompt in past])
        used = end >= 0
        age = np.where(used, end, self._now) - at
        ages = len(EDGES)
        place = np.searchsorted(EDGES, age, side="right") - 1
        events = np.bincount(kind[used] * ages + place[used], minlength=_CLASSES * ages).reshape(_CLASSES, ages)
        ends = np.append(EDGES[1:], np.inf)
        spent = np.clip(np.minimum(age[:, None], ends[None]) - EDGES[None], 0.0, None)
        exposure = np.zeros((_CLASSES, ages))
        np.add.at(exposure, kind, spent)
        # What all classes share steadies those of which little is known.
        base = (events.sum(axis=0) + _PRIOR_S * 0.3 / (EDGES + 60.0) ** 1.5) / (exposure.sum(axis=0) + _PRIOR_S)
        weight = 20 * np.diff(np.append(EDGES, 2 * EDGES[-1]))
        table = gittins_table(events + weight * base, exposure + weight, EDGES)
        table[_CONTINUED] = 0.0
        return table


def _kind(length: int, turn: int, fresh: int) -> int:
    """The class of a prompt: a first turn by its blocks, a later one by its number and its share of new blocks."""
    if turn == 1:
        return 0 if length < 8 else 1 if length < 24 else 2 if length < 96 else 3
    return 4 * min(turn - 1, 3) + min(4 * fresh // length, 3)
