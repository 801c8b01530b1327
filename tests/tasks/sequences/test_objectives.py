"""Objectives against published values and against their definitions in plain Python."""

from __future__ import annotations

import cmath
import dataclasses
import math
from fractions import Fraction
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statepool.core.errors import InvalidRequest
from statepool.tasks.sequences import (
    BadCertificate,
    Code,
    InvalidSequence,
    best_filter,
    certify,
    families,
    make,
    mate,
    parse,
    sir,
    verify,
    zone,
)
from statepool.tasks.sequences.correlation import ambiguity, core
from statepool.tasks.sequences.filters import exact_filter, sir_batch, sir_reference

from .published import LONG, LONG_SIR, best_ratio, cross, signs

BINARY = st.lists(st.integers(0, 1), min_size=2, max_size=40).map(lambda p: Code(tuple(p)))


def test_printed_values_of_known_codes() -> None:
    legendre, barker = families.legendre(59), families.barker(13)
    assert round(sir(legendre), 5) == 10.98403
    facts = make("labs").score([legendre]).facts
    assert round(facts["merit"], 5) == 6.19395 and facts["psl"] == 5
    assert make("mmf-sir").score([barker]).exact == 37
    assert make("merit").score([barker]).exact == Fraction(169, 12)
    assert make("isl").score([barker]).exact == 12
    long = make("mmf-sir").score([parse(LONG[:59])])
    assert long.exact == Fraction(LONG_SIR)
    assert round(long.facts["loss_db"], 2) == -3.21 and long.facts["psl"] == 23


def test_printed_values_of_longer_filters() -> None:
    barker = families.barker(13)
    assert round(sir(barker, 25)) == 88
    assert round(sir(barker, 39)) == 1008
    assert round(best_filter(barker).loss, 2) == -0.14
    assert round(sir(families.legendre(59), 3 * 59)) == 104


@pytest.mark.parametrize("length", [11, 14, 17])
def test_the_exact_ratio_is_the_definitions(length: int) -> None:
    code = parse("+++---+--+-")
    expected = best_ratio(signs("+++---+--+-"), length)
    assert make("mmf-sir", {"length": length}).score([code]).exact == expected
    assert math.isclose(sir(code, length), expected, rel_tol=1e-12)


@pytest.mark.parametrize("length", [91, 208])
def test_where_rounding_eats_the_interference_the_exact_solution_answers(length: int) -> None:
    barker = families.barker(13)
    exact = exact_filter(barker, length).sir
    rounded = float(sir_batch(barker.signs[None], length)[0])
    assert abs(rounded / float(exact) - 1) > 1e-9  # this is such a case
    assert sir(barker, length) == float(exact)


@given(code=BINARY, more=st.integers(0, 9))
def test_native_ratio_numpy_twin_and_fractions_agree(code: Code, more: int) -> None:
    length = len(code) + more
    exact = exact_filter(code, length).sir
    assert math.isclose(sir(code, length), exact, rel_tol=1e-9)
    assert math.isclose(sir_reference(code, length), exact, rel_tol=1e-8)


@pytest.mark.parametrize("n", [100, 256])
def test_ratio_in_double_precision_is_right_to_nine_digits(n: int) -> None:
    code = Code(tuple(np.random.default_rng(n).integers(0, 2, n).tolist()))
    assert math.isclose(sir(code), exact_filter(code).sir, rel_tol=1e-9)
    assert math.isclose(sir(code), sir_reference(code), rel_tol=1e-9)


def test_all_instruction_sets_give_the_same_bits() -> None:
    rows = np.random.default_rng(3).choice(np.array([-1, 1], np.int8), (37, 45))
    before, results = core.isa(), []
    try:
        for name in ("generic", "avx2", "avx512"):
            if core.set_isa(name):
                found = core.search_sir(23, 23, 0.0, 1, 0, 3, "tabu", 40, -1e9)
                pair = core.search_pair(15, 8, 15, 1, 0, 5, "tabu", 50, 0.0)
                energy = core.search_energy(25, True, 1, 0, 5, "walk", 100, 0.0)
                results.append((sir_batch(rows, 60).tobytes(), *(f[0].tobytes() for f in (found, pair, energy))))
    finally:
        core.set_isa(before)
    assert len(results) >= 1 and len(set(results)) == 1


@given(code=BINARY)
def test_energy_peak_and_level_from_the_definition(code: Code) -> None:
    s = signs(code.text)
    rho = [cross(s, s, k) for k in range(1, len(s))]
    assert make("labs").score([code]).exact == sum(r * r for r in rho)
    assert make("psl").score([code]).exact == max(map(abs, rho))
    row = code.signs[None, None]
    assert make("labs").costs(row)[0] == sum(r * r for r in rho)
    assert math.floor(make("psl").costs(row)[0]) == max(map(abs, rho))


@pytest.mark.parametrize("alphabet", [3, 4, 5, 6, 8])
def test_polyphase_energy_from_the_definition(alphabet: int) -> None:
    random = Random(alphabet)
    code = Code(tuple(random.randrange(alphabet) for _ in range(17)), alphabet)
    z = [cmath.exp(2j * math.pi * p / alphabet) for p in code.phases]
    energy = sum(abs(sum(z[i] * z[i + k].conjugate() for i in range(17 - k))) ** 2 for k in range(1, 17))
    score = make("labs").score([code])
    assert math.isclose(score.value, energy, rel_tol=1e-12)
    assert (score.exact is not None) == (alphabet in (3, 4, 6))


@given(
    st.integers(2, 12).flatmap(
        lambda n: st.lists(st.lists(st.integers(0, 1), min_size=n, max_size=n), min_size=4, max_size=4)
    )
)
def test_complementary_cost_from_the_definition(rows: list[list[int]]) -> None:
    n, s = len(rows[0]), [[1 - 2 * p for p in row] for row in rows]
    total = 0
    for u, v in ((0, 0), (0, 1), (1, 1)):
        for k in range(1 - n, n):
            if u != v or k:
                total += abs(sum(cross(s[2 * u + m], s[2 * v + m], k) for m in (0, 1)))
    objective = make("moccs")
    assert objective.score([Code(tuple(row)) for row in rows]).exact == total
    assert objective.costs(np.array(s, np.int8)[None])[0] == total


@pytest.mark.parametrize(
    ("kind", "a", "b", "sums"),
    [
        (1, "++++++--+-+-+", "+++--+-++--++", [0] * 6 + [2, -2, -2, 2, 2, 2]),
        (2, "+++++++---++-", "++--++-++-+-+", [2, -2, 2, 2, 2, -2] + [0] * 6),
        (1, "+++++-+-+--", "++---++-++-", None),
        (1, "-+-+++-+++-++++--++++-+-++-----++++-+", "+-++++-++-+-+-----++-++--+--+++---+--", None),
    ],
)
def test_published_odd_pairs(kind: int, a: str, b: str, sums: list[int] | None) -> None:
    score = make("zcp", {"kind": kind}).score([parse(a), parse(b)])
    assert score.exact == 0 and score.facts["optimal"] and score.facts["zone"] == (len(a) + 1) // 2
    assert sums is None or score.facts["sums"][1:] == sums
    broken = make("zcp", {"kind": kind}).score([parse(a), parse(b[:-1] + ("+" if b[-1] == "-" else "-"))])
    assert broken.value > 0 and not broken.facts["optimal"]


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=12))
def test_zone_counts_zero_sums(sums: list[int]) -> None:
    n = len(sums)
    for kind, lags in ((1, range(1, n)), (2, range(n - 1, 0, -1))):
        width = zone(sums, kind)
        inside = list(lags)[: width - 1]
        assert all(sums[k] == 0 for k in inside)
        assert width == n or sums[list(lags)[width - 1]] != 0


def test_golay_codes_are_complementary_and_have_low_envelopes() -> None:
    for n in (2, 4, 8, 10, 16, 20, 26, 40, 52, 64, 100):
        a, b = families.golay(n)
        s, t = signs(a.text), signs(b.text)
        assert all(cross(s, s, k) + cross(t, t, k) == 0 for k in range(1, n))
        score = make("pmepr").score([a])
        assert score.value <= 2 + 1e-9 and score.facts["bound"] >= score.value
        u, v = (signs(code.text) for code in mate(a, b))
        assert all(cross(s, u, k) + cross(t, v, k) == 0 for k in range(1 - n, n))
    assert make("moccs", {"users": 4, "elements": 4}).score(families.complementary_set(4, 8)).exact == 0


def test_families_keep_their_promises() -> None:
    for n in (9, 16, 21):
        z = families.zadoff_chu(n).values
        assert all(abs(sum(z[i] * z[(i + k) % n].conjugate() for i in range(n))) < 1e-9 for k in range(1, n))
    for degree in range(2, 9):
        s = signs(families.m_sequence(degree).text)
        assert {sum(s[i] * s[(i + k) % len(s)] for i in range(len(s))) for k in range(1, len(s))} == {-1}
    for n in (33, 41, 53):
        assert any(True for _ in families.odd_pairs(n, 1)), n
    for n in (19, 31, 39, 51):
        assert any(True for _ in families.odd_pairs(n, 2)), n


def test_the_ceiling_of_the_envelope_holds_between_the_instants() -> None:
    rows, missed = np.random.default_rng(5).integers(0, 2, (20, 21)), 0.0
    for row in rows.tolist():
        rough, fine = (make("pmepr", {"oversampling": o}).score([Code(tuple(row))]) for o in (4, 512))
        assert rough.value <= fine.value + 1e-9 and fine.value <= rough.facts["bound"]
        missed = max(missed, fine.value / rough.value)
    assert missed > 1.01


def test_ambiguity_and_doppler_level_from_the_definition() -> None:
    code = families.barker(7)
    s, n = signs(code.text), 7
    shifts = np.linspace(-0.5, 0.5, 5)
    surface = ambiguity(code, shifts)
    total = 0.0
    for k in range(1 - n, n):
        for column, v in enumerate(shifts):
            pairs = ((i, i + k) for i in range(n) if 0 <= i + k < n)
            value = abs(sum(s[i] * s[j] * cmath.exp(2j * math.pi * v * i / n) for i, j in pairs))
            assert math.isclose(surface[k + n - 1, column], value, abs_tol=1e-12)
            total += value**2 if k else 0
    assert math.isclose(make("wisl").score([code]).value, total, rel_tol=1e-12)


@settings(max_examples=30)
@given(
    code=st.lists(st.integers(0, 1), min_size=8, max_size=30).map(lambda p: Code(tuple(p))), limit=st.floats(-6, -0.05)
)
def test_a_limit_of_loss_is_kept_and_costs_ratio(code: Code, limit: float) -> None:
    found, free = best_filter(code, loss_min=limit), best_filter(code)
    s, n = signs(code.text), len(code)
    peak = sum(x * t for x, t in zip(s, found.taps, strict=True))
    rest = sum(cross(s, list(found.taps), k) ** 2 for k in range(1 - n, n) if k)
    assert found.sir == Fraction(peak**2, rest) and found.gain == Fraction(peak**2, n * sum(t * t for t in found.taps))
    assert found.loss >= limit - 1e-9
    assert found.sir <= free.sir
    matched = Fraction(n * n, 2 * make("labs").score([code]).exact)
    assert found.sir >= matched * Fraction(999999, 1000000)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: parse("+"), "at least 2 symbols"),
        (lambda: parse("++x+"), "'x' at place 2"),
        (lambda: parse("1 -1 0"), "must be 1 or -1"),
        (lambda: parse("1,nan"), "finite number"),
        (lambda: parse("hex:1ff", n=8), "8 symbols need 2 digits, there are 3"),
        (lambda: parse("hex:ff", n=7), "bits set before the first"),
        (lambda: parse("hex:zz", n=7), "no hexadecimal number"),
        (lambda: parse("hex:ff"), "needs its number of symbols"),
        (lambda: parse("runs:3 0 2"), "no length of a run"),
        (lambda: parse("+-+", n=4), "has 3 symbols, not 4"),
        (lambda: parse("0 5", alphabet=4), "must be from 0 to 3"),
        (lambda: parse("0 1.5", alphabet=4), "no whole number"),
        (lambda: make("merit").score([parse("+-"), parse("++")]), "1 expected, 2 given"),
        (lambda: make("zcp").score([parse("+-"), parse("+++")]), "one length"),
        (lambda: make("mmf-sir").score([Code((0, 1, 2), 3)]), "2 and 4 phases, not for 3"),
    ],
)
def test_bad_codes_are_named(call, words: str) -> None:
    with pytest.raises(InvalidSequence, match=words):
        call()


@pytest.mark.parametrize(
    ("name", "params", "words"),
    [
        ("best", {}, "is none of"),
        ("labs", {"length": 4}, "takes no parameters"),
        ("zcp", {"kind": 3}, "must be 1"),
        ("moccs", {"users": 3, "elements": 2}, "users: must be"),
        ("wisl", {"bins": 0}, "at least 1"),
        ("wisl", {"doppler": math.nan}, "at least 0"),
    ],
)
def test_bad_objectives_are_named(name: str, params: dict, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        make(name, params)


def test_bad_filters_are_named() -> None:
    with pytest.raises(InvalidRequest, match="needs at least 13 taps"):
        make("mmf-sir", {"length": 12}).score([families.barker(13)])
    with pytest.raises(InvalidRequest, match="at most 0 dB"):
        make("mmf-sir", {"loss_min": 1.0}).score([families.barker(13)])


@pytest.mark.parametrize("length", [None, 9, 12])
def test_filters_of_four_phases_are_the_best_there_are(length: int | None) -> None:
    code = Code((0, 1, 1, 3, 2, 0, 1), 4)
    objective = make("mmf-sir", {"length": length})
    record, score = certify(objective, [code])
    verify(record)
    taps, n = length or 7, 7
    start = (taps - n) // 2
    total = np.zeros((taps, taps), complex)
    signal = np.zeros(taps, complex)
    signal[start : start + n] = code.values
    for shift in range(1 - n, taps):  # from the definition
        moved = np.array([code.values[i - shift] if 0 <= i - shift < n else 0 for i in range(taps)])
        total += np.outer(moved, moved.conj()) * (shift != start)
    best = (signal.conj() @ np.linalg.solve(total, signal)).real
    assert score.value == pytest.approx(best, rel=1e-9)
    x = np.array(score.filter[:taps]) + 1j * np.array(score.filter[taps:])
    assert abs(x.conj() @ signal) ** 2 / (x.conj() @ total @ x).real == pytest.approx(best, rel=1e-9)
    worse = dataclasses.replace(record, filter=(score.filter[0] + 1, *score.filter[1:]))
    with pytest.raises(BadCertificate, match="value:"):
        verify(worse)


def test_two_phases_written_with_four_have_the_same_ratio() -> None:
    barker = families.barker(13)
    four = Code(tuple(2 * phase for phase in barker.phases), 4)
    assert make("mmf-sir").score([four]).exact == make("mmf-sir").score([barker]).exact == 37
    with pytest.raises(InvalidSequence, match="must be binary"):
        make("mmf-sir", {"loss_min": -1.0}).score([four])
