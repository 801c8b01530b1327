"""StopMatcher against a search over the whole text, for any cut."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statepool.engine.text.stop import StopMatcher

LETTERS = st.text("ab\n", min_size=1, max_size=5)


def first_match(text: str, stops: list[str]) -> tuple[int, str] | None:
    """The stop that ends first, the longest of those: by trying every prefix."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return end, max(ending, key=len)
    return None


@given(text=st.text("ab\n", max_size=40), stops=st.lists(LETTERS, max_size=4), data=st.data(), include=st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_cut_equals_the_whole(text: str, stops: list[str], data: st.DataObject, include: bool) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    matcher = StopMatcher(stops, include)
    seen, found = "", None
    for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True):
        emitted, found = matcher.push(text[a:b])
        seen += emitted
    expected = first_match(text, stops)
    if expected is None:
        assert found is None
        assert seen + matcher.finish() == text
    else:
        end, stop = expected
        assert found == stop == matcher.matched
        assert seen == (text[:end] if include else text[: end - len(stop)])
        assert matcher.push("more") == ("", stop)
        assert matcher.finish() == ""


@given(text=st.text("ab", max_size=30), stops=st.lists(LETTERS, min_size=1, max_size=3))
@settings(deadline=None)
def test_only_a_possible_match_is_held_back(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    emitted, found = matcher.push(text)
    if found is None:
        held = text[len(emitted) :]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_empty_stop_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopMatcher(["a", ""])
