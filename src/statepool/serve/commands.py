"""What the gateway may ask of a running engine between two steps, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from statepool.core.errors import InvalidRequest
from statepool.serve.weights import read_tensors


class Commands:
    """The callable surface of one engine. ``run`` is the only entry; unknown names are refused."""

    def __init__(self, engine: Any) -> None:
        """``engine`` has the methods of ``statepool.engine.engine.Engine``."""
        self._engine = engine
        self.paused = False
        """While true, no step is taken; requests stay where they are."""
        self._table: dict[str, Callable[..., Any]] = {
            "stats": engine.stats,
            "score": self._score,
            "embed": self._embed,
            "pause": self._pause,
            "resume": self._resume,
            "update_weights": self._update_weights,
            "reset_prefix_cache": engine.reset_prefix_cache,
            "sessions": self._sessions,
            "drop_session": self._drop_session,
            "fork_session": self._fork_session,
            "park_session": self._park_session,
            "export_state": engine.export_state,
            "import_state": engine.import_state,
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

    def _score(self, tokens: list[int]) -> np.ndarray:
        return np.asarray(self._engine.score(tokens), dtype=np.float32)

    def _embed(self, tokens: list[int]) -> np.ndarray:
        return np.asarray(self._engine.embed(tokens), dtype=np.float32)

    def _pause(self) -> None:
        self._engine.pause()
        self.paused = True

    def _resume(self) -> None:
        self._engine.resume()
        self.paused = False

    def _update_weights(self, path: str, version: str) -> None:
        tensors = read_tensors(path)
        self._engine.update_weights(tensors, version)

    def _sessions(self, salt: str = "") -> list[str]:
        return list(self._engine.sessions(salt))

    def _drop_session(self, name: str, salt: str = "") -> None:
        self._engine.drop_session(name, salt)

    def _fork_session(self, name: str, new: str, salt: str = "") -> None:
        self._engine.fork_session(name, new, salt)

    def _park_session(self, name: str, salt: str = "") -> None:
        self._engine.park_session(name, salt)
