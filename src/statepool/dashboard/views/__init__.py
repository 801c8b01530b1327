"""What each page shows: a function per page that looks at a room and answers with plain values."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from statepool.dashboard.live import Look, off
from statepool.dashboard.sources import Sources
from statepool.dashboard.views.attention import AttentionTrace
from statepool.dashboard.views.rollout import RolloutView
from statepool.dashboard.views.sandboxes import sandboxes
from statepool.dashboard.views.sequences import Codes
from statepool.dashboard.views.serving import Serving
from statepool.dashboard.views.storage import Storage
from statepool.dashboard.views.topology import ScanView
from statepool.dashboard.views.training import TrainingView

if TYPE_CHECKING:
    from statepool.serve.state import GatewayState

__all__ = ["Detail", "views"]

Detail = Callable[[dict[str, str]], Awaitable[dict[str, Any]]]

_FILE = "the file of `statepool up`"


def views(sources: Sources, state: GatewayState) -> tuple[dict[str, Look], dict[str, Detail]]:
    """The pages by name, and what they ask about one thing they show, which takes the parameters of a query.

    A page of a room that is not there says how to have it.
    """
    storage = Storage(sources.store, sources.vector) if sources.store or sources.vector else None
    codes = Codes(sources.records, sources.archive) if sources.records or sources.archive else None
    scan = None if sources.topology is None else ScanView(sources.topology)
    rollout = None if sources.rollout is None else RolloutView(sources.rollout)
    training = None if sources.train is None else TrainingView(sources.train)
    url = sources.sandbox
    pages = {
        "serving": Serving(state).look,
        "rollout": _page(
            None if rollout is None else rollout.look,
            f"Set rollout: in {_FILE}, and run `statepool rollout run … --timeline FILE`.",
        ),
        "training": _page(
            None if training is None else training.look, f"Set train: in {_FILE} to the folder of a training run."
        ),
        "sandboxes": _page(None if url is None else lambda: sandboxes(url), f"Add a sandbox: room to {_FILE}."),
        "storage": _page(None if storage is None else storage.look, f"Add a store: or a vector: room to {_FILE}."),
        "sequences": _page(
            None if codes is None else codes.look, f"Set records: or archive: under sequences: in {_FILE}."
        ),
        "topology": _page(None if scan is None else scan.look, f"Set topology: in {_FILE} to the file of a scan."),
    }
    trace = AttentionTrace(state.config.engine.attention, state.config.engine.trace_selection)
    details = {"attention": _detail(trace.of)}
    if codes is not None:
        details["code"] = _detail(codes.code)
    if scan is not None:
        details["slopes"] = _detail(scan.slopes)
    return pages, details


def _page(look: Callable[[], dict[str, Any]] | None, hint: str) -> Look:
    """Looking may wait on files and sockets, so it is done off the event loop."""

    async def found() -> dict[str, Any]:
        return off(hint) if look is None else await asyncio.to_thread(look)

    return found


def _detail(answer: Callable[[dict[str, str]], dict[str, Any]]) -> Detail:
    async def found(query: dict[str, str]) -> dict[str, Any]:
        return await asyncio.to_thread(answer, query)

    return found
