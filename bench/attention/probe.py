"""A3: answers of the bundled models when only a part of the context is read, ours beside the paper's and others.

Few tokens are not few bytes: small clusters are found surely and have large tables. So what does best at a share of the
clusters is set beside everything else at the bytes that it reads, larger clusters with a larger share among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.machine import LoadWatch
from bench.row import Row, asked
from statepool.train.probe.judge import engine_of, questions, score
from statepool.train.probe.rivals import RIVALS, TABLES

_CLUSTERS = (16, 8, 4)
"""Tokens per cluster."""
_PAPER = "wave:paper,update_segment=256"
_TEXTS = {
    "probe": ("the probe model, 2,048 tokens", 2048, 6, 50),
    "tiny": ("the bundled model, 1,800 tokens of words", 1900, 40, 300),
}
"""By model: what is asked, its length, and how many texts quickly and in full."""


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """A3a at 1.8 % of the clusters and A3b at 5 % on the probe; A3c and A3d the same on the model that talks."""
    for model, names in (("probe", ("A3a", "A3b")), ("tiny", ("A3c", "A3d"))):
        wanted = [name for name in names if asked(name, only)]
        if wanted:
            yield from _rows(model, names, wanted, quick)


def _rows(model: str, names: tuple[str, str], wanted: list[str], quick: bool) -> Iterator[Row]:
    where, length, few, many = _TEXTS[model]
    asked = questions(model, few if quick else many, length)
    full = score("full", engine_of(model, "full", 1.0), asked)
    for name, share in zip(names, (0.018, 0.05), strict=True):
        if name not in wanted:
            continue
        target = 0.98 if share < 0.02 else full.share - 0.005
        row = Row(name, f"right answers at {share:.1%} of the clusters, {where}", "right", "higher", target)
        watch = LoadWatch()
        ours = {n: score(str(n), engine_of(model, f"wave:tokens_per_cluster={n}", share), asked) for n in _CLUSTERS}
        best = max(_CLUSTERS, key=lambda n: ours[n].share)
        size = share + TABLES / best
        row.value = ours[best].share
        row.own = f"{best} tokens per cluster, {size:.1%} of the bytes, {full.answers} answers"
        others = {f"{n} tokens per cluster": each.share for n, each in ours.items() if n != best}
        for label, kind in (
            ("diag2", f"wave:tokens_per_cluster={best},estimator=diag2"),
            ("without estimation", f"wave:tokens_per_cluster={best},estimate=0"),
            ("the paper's settings", _PAPER),
        ):
            others[label] = score(label, engine_of(model, kind, share), asked).share
        equal = {}
        for n in _CLUSTERS:
            more = round(size - TABLES / n, 4)
            if n > best and more > share:
                equal[f"{n} tokens per cluster"] = f"wave:tokens_per_cluster={n},retrieve={more},least=0"
        equal["the paper's settings"] = f"{_PAPER},retrieve={round(max(size - TABLES / 16, share), 4)},least=0"
        equal |= {name: name for name in RIVALS}
        beside = {
            label: score(label, engine_of(model, kind, share, best), asked).share for label, kind in equal.items()
        }
        row.peer, row.peer_value, row.peer_unit = "exact attention", full.share, "right"
        at_share, at_bytes = ("; ".join(f"{k} {v:.3f}" for k, v in each.items()) for each in (others, beside))
        row.note = f"at as many clusters: {at_share}; at as many bytes: {at_bytes}"
        row.command = "python -m bench attention --only A3"
        row.load = watch.stop()
        yield row
