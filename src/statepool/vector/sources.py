"""Vectors, ids and columns as other programs leave them in files."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from statepool.core.errors import InvalidRequest

__all__ = ["Source", "read_columns", "read_ids", "read_rows", "read_vectors"]

Source = Literal["npy", "fvecs", "hnswlib"]

_HNSWLIB = struct.Struct("<6QiI3QdQ")
"""``saveIndex`` of hnswlib 0.8: offset of level 0, room, rows, bytes per row, offsets of label and vector in it;
levels, entry; links above and at level 0, M, mult, ef of the build."""
_DELETED = 1


def read_array(path: Path) -> np.ndarray:
    """An array from a ``.npy`` file.

    Raises:
        InvalidRequest: it is none.
    """
    try:
        found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InvalidRequest(f"{path}: is no .npy file ({error})") from error
    return found


def read_ids(path: Path) -> Any:
    """Ids: int64 from ``.npy``, else a text per line.

    Raises:
        InvalidRequest: neither.
    """
    if path.suffix == ".npy":
        return read_array(path)
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{path}: is neither .npy nor text in UTF-8 ({error})") from error


def read_vectors(path: Path) -> np.ndarray:
    """Vectors ``[n, dim]`` from ``.npy`` or ``.fvecs``, by the name of the file.

    Raises:
        InvalidRequest: it is neither, or holds no rows.
    """
    return read_rows(path, "fvecs" if path.suffix == ".fvecs" else "npy")[0]


def read_rows(path: Path, source: Source) -> tuple[np.ndarray, np.ndarray | None]:
    """Vectors ``[n, dim]``, and ids int64 ``[n]`` if the file has them.

    Args:
        path: The file.
        source: ``npy``, ``fvecs`` (per row its length as int32, then float32 values), or ``hnswlib`` (what its
            ``save_index`` wrote, over float32; rows that were deleted there are left out).

    Raises:
        InvalidRequest: it is no such file, or holds no rows.
    """
    if source not in get_args(Source):
        raise InvalidRequest(f"from: '{source}' is none of {', '.join(get_args(Source))}", param="from")
    if source == "hnswlib":
        return _read_hnswlib(path)
    if source == "npy":
        found = read_array(path)
        if found.ndim != 2 or not len(found):
            raise InvalidRequest(f"{path}: holds an array of shape {found.shape}; rows [n, dim] are needed")
        return found, None
    raw = np.fromfile(path, "u1")
    words = raw[: len(raw) // 4 * 4].view("<i4")
    width = int(words[0]) + 1 if len(words) else 0
    if width < 2 or len(raw) % (4 * width) or (words[::width] != width - 1).any():
        raise InvalidRequest(f"{path}: is no .fvecs file, or its rows differ in length")
    return words.reshape(-1, width)[:, 1:].view("<f4"), None


def _read_hnswlib(path: Path) -> tuple[np.ndarray, np.ndarray]:
    raw = np.fromfile(path, "u1")
    if len(raw) < _HNSWLIB.size:
        raise InvalidRequest(f"{path}: is no index of hnswlib; it is too short")
    start, room, count, stride, label, vector, *_ = _HNSWLIB.unpack_from(raw.data)
    end = _HNSWLIB.size + count * stride
    fits = 0 < count <= room and start == 0 and 4 <= vector < label and label + 8 == stride and end <= len(raw)
    if not fits or (label - vector) % 4:
        raise InvalidRequest(f"{path}: is no index of hnswlib over float32 vectors")
    rows = raw[_HNSWLIB.size : end].reshape(count, stride)
    stays = rows[:, 2] & _DELETED == 0
    rows = np.ascontiguousarray(rows[stays])
    ids = np.ascontiguousarray(rows[:, label:]).view("<u8").reshape(-1)
    if not len(rows) or ids.max() >= 2**63:
        raise InvalidRequest(f"{path}: holds no rows, or a label above 2^63 - 1")
    return np.ascontiguousarray(rows[:, vector:label]).view("<f4"), ids.astype(np.int64)


def read_columns(path: Path) -> dict[str, list[Any]]:
    """Columns from a file with a JSON object per row.

    Raises:
        InvalidRequest: a line that is none, or that has other names than the first.
    """
    found: dict[str, list[Any]] = {}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InvalidRequest(f"{path}: line {number} is no JSON ({error})") from error
            if not isinstance(row, dict) or (number > 1 and row.keys() != found.keys()):
                raise InvalidRequest(f"{path}: line {number} is no object with the names of the first line")
            for name, value in row.items():
                found.setdefault(name, []).append(value)
    return found
