"""The durable store and the vector server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from statepool.core.errors import StatepoolError
from statepool.dashboard.live import away
from statepool.web import get_json

__all__ = ["Storage"]


class Storage:
    """A store that some process of this machine serves, and the address of a vector server; either may be None."""

    def __init__(self, store: Path | None, vector: str | None) -> None:
        self._store = store
        self._vector = vector

    def look(self) -> dict[str, Any]:
        """``store`` and ``vector``, each with its own state, so that one may be away."""
        store, vector = self._store, self._vector
        return {
            "store": None if store is None else _tried(lambda: _shown(store)),
            "vector": None if vector is None else _tried(lambda: {"url": vector, **get_json(vector, "/stat")}),
        }


def _shown(path: Path) -> dict[str, Any]:
    import statepool.store
    from statepool.store.native import Kind

    with statepool.store.open(path, mode="read") as store:
        structures = [
            {"name": name, "kind": Kind(kind).name.lower(), "entries": store.native.size(identity)}
            for name, identity, kind in store.native.structures()
        ]
        disk = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
        return {**store.stat(), "disk_bytes": disk, "structures": structures}


def _tried(look: Any) -> dict[str, Any]:
    try:
        return {"state": "live", **look()}
    except StatepoolError as error:
        return away(error.message)
    except OSError as error:
        return away(f"{error.filename or ''} {error.strerror or error}".strip())
