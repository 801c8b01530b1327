"""The durable store and the vector index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from statepool.core.errors import StatepoolError
from statepool.dashboard.live import away

__all__ = ["Storage"]


class Storage:
    """A store that some process of this machine serves, and the file of an index; either may be None."""

    def __init__(self, store: Path | None, vector: Path | None) -> None:
        self._store = store
        self._vector = vector
        self._seen: tuple[float, int] | None = None
        self._index: dict[str, Any] | None = None

    def look(self) -> dict[str, Any]:
        """``store`` and ``vector``, each with its own state, so that one may be away."""
        return {
            "store": None if self._store is None else _tried(lambda: _store(self._store)),
            "vector": None if self._vector is None else _tried(self._figures),
        }

    def _figures(self) -> dict[str, Any]:
        """Read again only when the file is another."""
        assert self._vector is not None
        about = self._vector.stat()
        seen = (about.st_mtime, about.st_size)
        if self._index is None or seen != self._seen:
            from statepool.vector import open as open_index

            index = open_index(self._vector)
            self._index = {"path": str(self._vector), "file_bytes": about.st_size, **index.stats()}
            self._seen = seen
        return self._index


def _store(path: Path | None) -> dict[str, Any]:
    import statepool.store
    from statepool.store.native import Kind

    assert path is not None
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
