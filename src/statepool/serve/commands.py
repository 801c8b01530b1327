"""What the gateway may ask of a running engine between two steps, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from statepool.core.errors import InvalidRequest
from statepool.serve.weights import read_tensors


class Commands:
    """The callable surface of one engine. ``run`` is the only entry; unknown names are refused."""

    def __init__(self, engine: Any) -> None:
        """``engine`` has the methods of ``statepool.engine.engine.Engine``."""
        self._engine = engine
        self._table: dict[str, Callable[..., Any]] = {
            "stats": engine.stats,
            "pause": engine.pause,
            "resume": engine.resume,
            "update_weights": self._update_weights,
            "reset_prefix_cache": engine.reset_prefix_cache,
            "session_names": self._session_names,
            "drop_session": self._drop_session,
            "fork_session": self._fork_session,
            "park_session": self._park_session,
        }

    def run(self, method: str, arguments: dict[str, Any]) -> Any:
        """Call one method.

        Raises:
            InvalidRequest: there is no such method, or its arguments do not fit.
            StatepoolError: whatever the engine refuses.
        """
        entry = self._table.get(method)
        if entry is None:
            raise InvalidRequest(f"the engine has no method {method!r}; it has {', '.join(sorted(self._table))}")
        return entry(**arguments)

    def _update_weights(self, path: str, version: str) -> None:
        self._engine.update_weights(read_tensors(path), version)

    def _session_names(self, salt: str = "") -> list[str]:
        return list(self._engine.sessions.names(salt))

    def _drop_session(self, name: str, salt: str = "") -> None:
        self._engine.sessions.drop(salt, name)

    def _fork_session(self, name: str, new: str, salt: str = "") -> None:
        self._engine.sessions.fork(salt, name, new)

    def _park_session(self, name: str, salt: str = "") -> None:
        self._engine.sessions.park(salt, name)
