"""Searches for codes: one interface, one budget, one journal.

``hpgan`` and ``alphaseq`` need torch and are imported when they are asked for.
"""

from typing import Any

from statepool.core.errors import InvalidRequest
from statepool.tasks.sequences.search import native, plain
from statepool.tasks.sequences.search.base import SEARCHERS, Batch, Searcher, searcher
from statepool.tasks.sequences.search.journal import Budget, Found, Journal, search

__all__ = ["SEARCHERS", "Batch", "Budget", "Found", "Journal", "Searcher", "native", "plain", "search", "searcher"]


def _hpgan(options: dict[str, Any]) -> Searcher:
    from statepool.tasks.sequences.search.hpgan import HpGan

    return HpGan(**{name: value for name, value in options.items() if name in ("loss", "repair", "elite")})


def _alphaseq(_: dict[str, Any]) -> Searcher:
    from statepool.tasks.sequences.search.alphaseq import AlphaSeq

    return AlphaSeq()


def _llm(options: dict[str, Any]) -> Searcher:
    from statepool.tasks.sequences.search.llm import Llm, chat

    if not options.get("url"):
        raise InvalidRequest("url: llm needs a served model; run `statepool serve` and name its /v1", param="url")
    return Llm(chat(options["url"], options.get("model")), options.get("run"))


SEARCHERS["hpgan"] = _hpgan
SEARCHERS["alphaseq"] = _alphaseq
SEARCHERS["llm"] = _llm
