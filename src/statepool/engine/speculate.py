"""Drafts without a second model: what followed the same n-gram earlier in the sequence.

A draft never changes a result (it is verified with the noise the token would have had anyway), so all
choices here are about speed. They depend on tokens only, never on a clock.
"""

from __future__ import annotations

from collections.abc import Sequence


class NgramDrafter:
    """Prompt-lookup drafts of one sequence, with a length that follows its acceptance.

    Remembers for every n-gram of length ``order`` where it last ended. The draft length doubles after
    a draft accepted whole and falls to what was accepted otherwise; after a total miss it probes again
    ``backoff`` tokens later.
    """

    def __init__(self, max_draft: int, order: int = 3, backoff: int = 8) -> None:
        self.max_draft = max_draft
        self.order = order
        self.backoff = backoff
        self._ends: dict[tuple[int, ...], int] = {}
        self._seen = 0
        self._length = max_draft
        self._quiet_until = 0

    def draft(self, tokens: Sequence[int]) -> list[int]:
        """Tokens guessed to follow ``tokens``; empty if there is no match or drafting does not pay."""
        n = self.order
        for end in range(max(self._seen, n), len(tokens)):
            self._ends[tuple(tokens[end - n : end])] = end
        self._seen = max(self._seen, len(tokens))
        if len(tokens) < n or len(tokens) < self._quiet_until:
            return []
        at = self._ends.get(tuple(tokens[-n:]))
        return [] if at is None else list(tokens[at : at + max(self._length, 1)])

    def observe(self, drafted: int, accepted: int, position: int) -> None:
        """Report that ``accepted`` of ``drafted`` tokens held, at sequence length ``position``."""
        if drafted == 0:
            return
        if accepted == drafted:
            self._length = min(max(self._length, 1) * 2, self.max_draft)
        else:
            self._length = accepted
        if accepted == 0:
            self._quiet_until = position + self.backoff
