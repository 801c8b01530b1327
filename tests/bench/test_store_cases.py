"""The claims about the store's speed: each is played, on every side under the policy that the page names."""

from __future__ import annotations

from bench.store.cases import MATCHES

CROWDS = {"M3a", "M3b", "M13c", "M13d"}
ALONE = {"M1", "M2", "M4", "M5a", "M5b", "M5c", "M12", "M13a", "M13b"}


def test_every_claim_is_played_once_and_crowds_apart() -> None:
    played = [(case.id, match.crowd) for match in MATCHES for case in match.cases]
    expected = [*((name, True) for name in CROWDS), *((name, False) for name in ALONE)]
    assert sorted(played) == sorted(expected)
