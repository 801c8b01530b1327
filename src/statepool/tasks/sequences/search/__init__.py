"""Searches for codes: one interface, one budget, one journal.

``hpgan`` needs torch and is imported when it is asked for.
"""

from typing import Any

from statepool.tasks.sequences.search import native, plain
from statepool.tasks.sequences.search.base import SEARCHERS, Batch, Searcher, searcher
from statepool.tasks.sequences.search.journal import Budget, Found, Journal, search

__all__ = ["SEARCHERS", "Batch", "Budget", "Found", "Journal", "Searcher", "native", "plain", "search", "searcher"]


def _hpgan(options: dict[str, Any]) -> Searcher:
    from statepool.tasks.sequences.search.hpgan import HpGan

    return HpGan(**{name: value for name, value in options.items() if name in ("loss", "repair", "elite")})


SEARCHERS["hpgan"] = _hpgan
