"""``--trace-selection``: which clusters every token of an answer read, as lines of JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from statepool.core.errors import InvalidConfig


class SelectionTrace:
    """A file that grows by one line per token and layer. It is written anew at the start.

    A line has ``request``, ``layer``, ``position``, ``tokens`` (how many are in clusters), ``clusters`` (empty ones
    that fill a segment's last sixteen included) and, by KV head, ``read`` (numbers of those read whole) and
    ``estimated`` (how many count by their centroid).

    Raises:
        InvalidConfig: the file cannot be written.
    """

    def __init__(self, path: str) -> None:
        try:
            self._file = Path(path).open("w", encoding="utf-8", buffering=1)  # noqa: SIM115
        except OSError as error:
            raise InvalidConfig(
                f"trace_selection: {path} cannot be written: {error.strerror}", param="trace_selection"
            ) from None

    def write(self, request: str, layer: int, position: int, tokens: int, zones: npt.NDArray[np.int32]) -> None:
        """Add a line; ``zones`` int32 ``[kv_heads][clusters]``: 2 read whole, 1 estimated, 0 left out."""
        line = {
            "request": request,
            "layer": layer,
            "position": position,
            "tokens": tokens,
            "clusters": zones.shape[1],
            "read": [np.flatnonzero(head == 2).tolist() for head in zones],
            "estimated": (zones == 1).sum(axis=1).tolist(),
        }
        self._file.write(json.dumps(line) + "\n")

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()
