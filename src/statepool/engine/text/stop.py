"""Stop strings on a stream of text, across any chunk border."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Finds the first stop string in streamed text.

    First means: the match that is complete first; among those that end at the same character, the longest.
    Text that may be the start of a match is held back until it is decided.
    """

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        """``stops`` must not hold empty strings; ``include`` keeps the matched string in the text."""
        self._stops = tuple(dict.fromkeys(stops))
        if "" in self._stops:
            raise ValueError("an empty stop string matches everywhere")
        self._include = include
        self._held = ""
        self._tables = [_failure(stop) for stop in self._stops]
        self._states = [0] * len(self._stops)
        self.matched: str | None = None
        """The stop string that ended the text."""

    def push(self, text: str) -> tuple[str, str | None]:
        """Text free to emit, and the stop string once one is complete; later text is ignored."""
        if self.matched is not None:
            return "", self.matched
        if not self._stops:
            return text, None
        for index, char in enumerate(text):
            stop = self._advance(char)
            if stop is not None:
                self.matched = stop
                seen = self._held + text[: index + 1]
                self._held = ""
                return (seen if self._include else seen[: -len(stop)]), stop
        seen = self._held + text
        keep = max(self._states)
        cut = len(seen) - keep
        self._held = seen[cut:]
        return seen[:cut], None

    def finish(self) -> str:
        """The text held back, when the stream ends without a match."""
        held, self._held = self._held, ""
        self._states = [0] * len(self._stops)
        return held

    def _advance(self, char: str) -> str | None:
        """Feed one character to every matcher (Knuth, Morris and Pratt 1977); the longest completed stop, if any."""
        best: str | None = None
        for index, stop in enumerate(self._stops):
            state = self._states[index]
            table = self._tables[index]
            while state and stop[state] != char:
                state = table[state - 1]
            if stop[state] == char:
                state += 1
            if state == len(stop):
                if best is None or len(stop) > len(best):
                    best = stop
                state = table[state - 1]
            self._states[index] = state
        return best


def _failure(pattern: str) -> list[int]:
    """For each prefix of ``pattern``, the length of its longest proper border."""
    table = [0] * len(pattern)
    length = 0
    for index in range(1, len(pattern)):
        while length and pattern[index] != pattern[length]:
            length = table[length - 1]
        if pattern[index] == pattern[length]:
            length += 1
        table[index] = length
    return table
