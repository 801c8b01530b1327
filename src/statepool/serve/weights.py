"""Tensors that an outside trainer hands over in a checkpoint folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from statepool.core.errors import InvalidCheckpoint, InvalidRequest
from statepool.engine.loader import Checkpoint


def read_tensors(path: str) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Name and value of every tensor of the checkpoint folder ``path``: float32, or uint16 for bf16.

    A folder in ``/dev/shm`` is shared memory: its files are mapped, not read through a disk. Values are
    copies, so the trainer may overwrite the files once the update is done.

    Raises:
        InvalidRequest: ``path`` is no checkpoint folder in Hugging Face layout.
    """
    try:
        checkpoint = Checkpoint(path)
    except InvalidCheckpoint as error:
        raise InvalidRequest(f"update_info.path: {error.message}", param="update_info.path") from error
    for name in sorted(checkpoint.names):
        yield name, np.array(checkpoint.tensor(name))


def has_every_tensor(path: str, model: str) -> bool:
    """Whether the tensors of ``path`` replace every one of ``model``; False too where one of them cannot be read."""
    try:
        return Checkpoint(path).names >= Checkpoint(model).names
    except (OSError, InvalidCheckpoint):
        return False
