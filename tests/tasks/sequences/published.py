"""Values that others published or proved, and the plainest way to compute them again."""

from __future__ import annotations

from fractions import Fraction

ALPHASEQ_BARKER = "+++++--++-+-+"
LONG = "+-+-+-+-+-+-+-+-++-+-++-++--+---++---+++++-----------------"
LONG_SIR = "12683197267812145791507381280223/249459254678131045667120217623"

# n: least energy, largest ratio, by trying every code
EXHAUSTIVE = {
    5: (2, "13"), 7: (3, "9"), 9: (12, "7.25"), 10: (13, "7.660976"), 11: (5, "25"), 12: (10, "14.317092"),
    13: (6, "37"), 14: (19, "26.606370"), 15: (15, "22.874282"), 16: (24, "21.697290"),
}  # fmt: skip
PEAKS = {5: 1, 7: 1, 9: 2, 10: 2, 11: 1, 12: 2, 13: 1, 14: 2, 15: 2, 16: 2}
# Packebusch and Mertens, arXiv 1512.02475
ENERGIES = dict(zip(range(24, 41), (36, 36, 45, 37, 50, 62, 59, 67, 64, 64, 65, 73, 82, 86, 87, 99, 108), strict=True))
# Kazakov and Liu, arXiv 2402.06081, and brute force: ordered optimal pairs by type
ODD_PAIRS = {
    1: {3: 24, 5: 96, 7: 192, 9: 864, 11: 704, 13: 1408},
    2: {3: 32, 5: 160, 7: 544, 9: 1760, 11: 2432, 13: 5632},
}
GOLAY_PAIRS = {2: 8, 4: 32, 8: 192, 10: 128}


def signs(text):
    return [1 if c == "+" else -1 for c in text]


def cross(a, b, k):
    """C(k) of lists, from the definition."""
    if k < 0:
        return cross(b, a, -k)
    return sum(a[i] * b[i + k] for i in range(len(a) - k))


def best_ratio(s, taps):
    """s' R^-1 s in fractions, R summed over every shifted copy and inverted by Gauss and Jordan."""
    n, start = len(s), (taps - len(s)) // 2
    table = [[Fraction(0)] * taps for _ in range(taps)]
    for shift in range(1 - n, taps):
        if shift != start:
            moved = [s[i - shift] if 0 <= i - shift < n else 0 for i in range(taps)]
            for i in range(taps):
                for j in range(taps):
                    table[i][j] += moved[i] * moved[j]
    here = [s[i - start] if 0 <= i - start < n else 0 for i in range(taps)]
    rows = [[*row, Fraction(x)] for row, x in zip(table, here, strict=True)]
    for k in range(taps):
        pivot = next(i for i in range(k, taps) if rows[i][k])
        rows[k], rows[pivot] = rows[pivot], rows[k]
        rows[k] = [x / rows[k][k] for x in rows[k]]
        for i in range(taps):
            if i != k and rows[i][k]:
                rows[i] = [x - rows[i][k] * y for x, y in zip(rows[i], rows[k], strict=True)]
    return sum(x * row[-1] for x, row in zip(here, rows, strict=True))
