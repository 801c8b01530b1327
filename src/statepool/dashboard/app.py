"""The dashboard's routes: pages at ``/dashboard``, figures at ``/dashboard/now/PAGE`` and ``/dashboard/live/PAGE``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from statepool.dashboard.sources import Sources

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

    from statepool.dashboard.live import Shared

__all__ = ["mounted"]

_PAGES = Path(__file__).parent / "pages"
_PATH = "/dashboard"


def mounted(sources: Sources) -> Callable[[FastAPI], None]:
    """What adds the dashboard to a server's application; see ``serve.server.run``."""

    def add(app: FastAPI) -> None:
        from starlette.responses import FileResponse, JSONResponse, StreamingResponse
        from starlette.responses import Response as Answer
        from starlette.staticfiles import StaticFiles

        from statepool.core.errors import NotFound
        from statepool.dashboard.live import Shared
        from statepool.dashboard.views import views

        state = app.state.gateway
        state.pages["dashboard"] = _PATH
        pages, details = views(sources, state)
        live = {name: Shared(look) for name, look in pages.items()}

        def shared(request: Request) -> Shared:
            name = request.path_params["page"]
            if name not in live:
                raise NotFound(f"there is no page {name!r}; there are {', '.join(live)}")
            return live[name]

        async def page(_: Request) -> Response:
            return FileResponse(_PAGES / "index.html", headers={"Cache-Control": "no-cache"})

        async def now(request: Request) -> Response:
            return Answer(await shared(request).text(), media_type="application/json")

        async def stream(request: Request) -> Response:
            events: AsyncIterator[str] = shared(request).events(lambda: bool(state.draining))
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

        async def detail(request: Request) -> Response:
            what = request.path_params["what"]
            if what not in details:
                raise NotFound(f"there is no detail {what!r}; there are {', '.join(details)}")
            return JSONResponse(await details[what](dict(request.query_params)))

        app.add_route(_PATH, page)
        app.add_route(f"{_PATH}/now/{{page}}", now)
        app.add_route(f"{_PATH}/live/{{page}}", stream)
        app.add_route(f"{_PATH}/detail/{{what}}", detail)
        app.mount(f"{_PATH}/static", StaticFiles(directory=_PAGES), name="dashboard")

    return add
