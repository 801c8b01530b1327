"""Novelty: two sets of codes are the same when a symmetry of their objective takes one to the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations

import numpy as np

from statepool.core.errors import InvalidRequest
from statepool.tasks.sequences.codes import Code
from statepool.tasks.sequences.sets import Complementary, ZeroZone

__all__ = ["orbit_key", "representatives", "without_signs"]

_MOST_USERS = 6


def orbit_key(objective: object, codes: Sequence[Code]) -> str:
    """Equal for two sets exactly when they lie in one orbit.

    One binary code: negate, reverse, alternate signs (8 forms). One polyphase code: turn all, turn by a step per
    symbol, conjugate, reverse (4 M² forms). A pair: swap, negate or reverse either, alternate both (64). Complementary
    sets: permute users and elements, negate a user or an element throughout, reverse all, alternate all.
    """
    alphabet = codes[0].alphabet
    rows = np.array([code.phases for code in codes])
    if isinstance(objective, Complementary):
        kind, forms = f"sets{objective.users}x{objective.elements}", _sets(rows, objective, alphabet)
    elif isinstance(objective, ZeroZone):
        kind, forms = "pair", _pairs(rows)
    else:
        kind, forms = "code", _singles(rows, alphabet)
    least = min(tuple(form.ravel().tolist()) for form in forms)
    size = rows.shape[1]
    parts = [Code(least[i : i + size], alphabet) for i in range(0, len(least), size)]
    return f"{kind}:{size}:{alphabet}:" + ",".join(
        p.hex if alphabet == 2 else ".".join(map(str, p.phases)) for p in parts
    )


def representatives(objective: object, signs: np.ndarray) -> np.ndarray:
    """int8 [count, codes, n] with one form of each orbit of codes and pairs; of sets, only negations are taken out.

    A net learns few forms better and blends many: one form of a pair, of 16, takes its valid samples from 7 to 76 %.
    Sets have 12 at most and are valid with all of them, and what is new lies between forms.
    """
    if isinstance(objective, Complementary):
        return without_signs(objective, signs)
    kept: np.ndarray | None = None
    for form in _forms(signs, isinstance(objective, ZeroZone)):
        plain = without_signs(objective, form)
        if kept is None:
            kept = plain.copy()
            continue
        rows, least = plain.reshape(len(plain), -1), kept.reshape(len(plain), -1)
        place = (rows != least).argmax(1)[:, None]  # where they first differ, + comes before -
        before = (np.take_along_axis(rows, place, 1) > np.take_along_axis(least, place, 1))[:, 0]
        kept[before] = plain[before]
    assert kept is not None
    return kept


def _forms(signs: np.ndarray, pair: bool) -> Iterator[np.ndarray]:
    alternating = (1 - 2 * (np.arange(signs.shape[2]) % 2)).astype(np.int8)
    for swapped in (signs, signs[:, ::-1]) if pair else (signs,):
        half = np.concatenate([swapped[:, :1], swapped[:, 1:, ::-1]], 1)
        for one in (swapped, half) if pair else (swapped,):
            for turned in (one, one[:, :, ::-1]):
                yield turned
                yield turned * alternating


def without_signs(objective: object, signs: np.ndarray) -> np.ndarray:
    """int8 [count, codes, n] with the negations removed that the objective does not see.

    Of a pair each code begins with +1; of sets, user 0's codes and every user's first code do.
    """
    first = signs[:, :, :1] if isinstance(objective, ZeroZone) else signs[:, :1, :1]
    plain: np.ndarray = signs * first
    if isinstance(objective, Complementary):
        table = signs.reshape(len(signs), objective.users, objective.elements, -1)
        table = table * table[:, :1, :, :1]
        plain = (table * table[:, :, :1, :1]).reshape(signs.shape)
    return plain


def _singles(rows: np.ndarray, alphabet: int) -> Iterator[np.ndarray]:
    steps = np.arange(rows.shape[1])
    for turned in (rows, rows[:, ::-1]):
        for either in (turned, -turned) if alphabet > 2 else (turned,):
            for step in range(alphabet):
                ramp = (either + step * steps) % alphabet
                yield (ramp - ramp[:, :1]) % alphabet  # of all constant turns this one is least


def _pairs(rows: np.ndarray) -> Iterator[np.ndarray]:
    sign = np.arange(rows.shape[1]) % 2
    for one, other in ((0, 1), (1, 0)):
        for a in (rows[one], rows[one][::-1]):
            for b in (rows[other], rows[other][::-1]):
                for x, y in ((a, b), (a ^ sign, b ^ sign)):
                    yield np.stack([x ^ x[0], y ^ y[0]])


def _sets(rows: np.ndarray, shape: Complementary, alphabet: int) -> Iterator[np.ndarray]:
    if alphabet != 2:
        raise InvalidRequest("alphabet: orbits of complementary sets are known for binary codes only", param="alphabet")
    if shape.elements > _MOST_USERS:
        raise InvalidRequest(f"elements: orbits are searched up to {_MOST_USERS} elements", param="elements")
    table = rows.reshape(shape.users, shape.elements, -1)
    sign = np.arange(table.shape[2]) % 2
    for whole in (table, table[:, :, ::-1]):
        for each in (whole, whole ^ sign):
            for users in permutations(range(shape.users)):
                for elements in permutations(range(shape.elements)):
                    form = each[list(users)][:, list(elements)]
                    # of all negations of users and elements, the least: first symbols of user 0 and element 0 are +
                    form = form ^ form[:1, :, :1]
                    yield form ^ form[:, :1, :1]
