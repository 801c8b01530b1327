"""A3: answers of the bundled models when only a part of the context is read, ours beside the paper's and others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.machine import LoadWatch
from bench.row import Row, asked
from statepool.train.probe.judge import engine_of, questions, score
from statepool.train.probe.rivals import RIVALS

_CLUSTERS = (16, 8, 4)
"""Tokens per cluster. Finer clusters are found more surely, and their tables are more bytes: all are printed."""
_OTHERS = {"the paper's settings": "wave:paper,update_segment=256", "without estimation": "wave:estimate=0"}
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
        row.value, row.own = ours[best].share, f"{best} tokens per cluster, {full.answers} answers"
        found = {f"{n} tokens per cluster": each.share for n, each in ours.items() if n != best}
        others = {"diag2": f"wave:tokens_per_cluster={best},estimator=diag2", **_OTHERS, **{n: n for n in RIVALS}}
        found |= {
            label: score(label, engine_of(model, kind, share, best), asked).share for label, kind in others.items()
        }
        row.peer, row.peer_value, row.peer_unit = "exact attention", full.share, "right"
        row.note = "; ".join(f"{who} {value:.3f}" for who, value in found.items())
        row.command = "python -m bench attention --only A3"
        row.load = watch.stop()
        yield row
