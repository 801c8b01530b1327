"""Weights by version in shared memory: a trainer publishes, any number of engines take them up between two steps.

Each version is one safetensors file in a folder of memory (`/dev/shm` where there is one). A file is written beside its
place and moved there, and `current` names the newest, so that a reader finds a whole version or the one before. The two
newest stay: an engine may still be reading the older one.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from statepool.core.errors import NotFound
from statepool.engine.engine import Engine

_log = logging.getLogger(__name__)
KEPT = 2
_PREFIX = "statepool-weights-"


class Publisher:
    """Writes versions into a folder of its own, which goes with it.

    Args:
        folder: where; by default one in shared memory.
        owner: whose weights they are, such as a run's folder. The same owner gets the same folder in shared memory, so
            that a killed run leaves one folder and takes it up again; without an owner it is a new one.
    """

    def __init__(self, folder: Path | None = None, owner: Path | None = None) -> None:
        memory = Path("/dev/shm")  # noqa: S108 - its place on Linux; the folder in it is a fresh one of ours
        if folder is None:
            base = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
            if base is None:
                _log.warning("there is no shared memory folder here, so weights pass through the temporary folder")
            if owner is None:
                folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
            else:
                name = hashlib.blake2b(str(owner.resolve()).encode(), digest_size=8).hexdigest()
                folder = Path(base or tempfile.gettempdir()) / f"{_PREFIX}{os.getuid()}-{name}"
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def publish(self, tensors: Iterable[tuple[str, npt.NDArray[Any]]], version: str) -> Path:
        """Write ``tensors`` (Hugging Face names, float32) as ``version`` and make it the current one."""
        place = self.folder / f"{version}.safetensors"
        fresh = place.with_suffix(".new")
        save_file({name: np.ascontiguousarray(value) for name, value in tensors}, fresh, {"version": version})
        fresh.replace(place)
        mark = self.folder / "current.new"
        mark.write_text(version)
        mark.replace(self.folder / "current")
        old = sorted(self.folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)[:-KEPT]
        for path in old:
            path.unlink()
        return place

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def current(folder: Path) -> str | None:
    """The newest version in a folder, or None before the first."""
    try:
        return (folder / "current").read_text()
    except FileNotFoundError:
        return None


def take_up(engine: Engine, folder: Path, version: str | None = None) -> str:
    """Give ``engine`` a version, by default the newest, unless it has it; returns the version.

    Raises:
        NotFound: there is no such version here (any more). InvalidCheckpoint: it does not fit the engine's model.
    """
    wanted = version if version is not None else current(folder)
    if wanted is None:
        raise NotFound(f"no weights were published in {folder} yet", param="version")
    if engine.version == wanted:
        return wanted
    try:
        tensors: Mapping[str, npt.NDArray[Any]] = load_file(folder / f"{wanted}.safetensors")
    except FileNotFoundError:
        raise NotFound(f"version {wanted} of the weights is not in {folder}", param="version") from None
    engine.update_weights(tensors.items(), wanted)
    return wanted
