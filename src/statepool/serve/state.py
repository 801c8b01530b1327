"""What all handlers of one server share, and how they reach it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends
from starlette.requests import Request as HttpRequest

from statepool.core.errors import Unavailable
from statepool.serve.config import ServeConfig
from statepool.serve.containers import Containers
from statepool.serve.metrics import ServerMetrics
from statepool.serve.response_store import ResponseStore
from statepool.serve.served_model import ServedModel
from statepool.serve.surface import Serving


@dataclass
class GatewayState:
    """One server: its engine, its model, its books."""

    config: ServeConfig
    engine: Serving
    metrics: ServerMetrics
    responses: ResponseStore
    containers: Containers
    model: ServedModel | None = None
    """``None`` while loading."""
    draining: bool = False
    active: int = 0
    """Generation calls between arrival and last byte."""
    pages: dict[str, str] = field(default_factory=dict)
    """Further pages by name, each at a path that needs no key, and neither does what lies below it in ``/static/``."""
    clock: Callable[[], float] = field(default=time.monotonic)
    wall_clock: Callable[[], float] = field(default=time.time)

    def ready_model(self) -> ServedModel:
        """The model, if calls are accepted now.

        Raises:
            Unavailable: loading, draining, or the engine is gone.
        """
        if self.draining:
            raise Unavailable("the server is shutting down")
        if self.engine.failure is not None:
            raise self.engine.gone()
        if self.model is None:
            raise Unavailable("the model is loading")
        return self.model


def _state_of(request: HttpRequest) -> GatewayState:
    state: GatewayState = request.app.state.gateway
    return state


State = Annotated[GatewayState, Depends(_state_of)]
