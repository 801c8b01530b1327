"""Checkpoints in Hugging Face layout: read, checked, and handed out as views of the file.

The safetensors format is eight bytes of header length, a JSON header, then raw tensors; files are
memory-mapped, so a tensor costs memory only while it is packed. bfloat16, which NumPy lacks, is
handed out as uint16 bit patterns.
"""

from __future__ import annotations

import json
import mmap
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from statepool.core.errors import InvalidCheckpoint

Array = npt.NDArray[Any]
_DTYPES = {"BF16": np.uint16, "F32": np.float32, "F16": np.float16}
_MAX_HEADER = 100 << 20
_SAMPLE = 4096


@dataclass(frozen=True, slots=True)
class _Slot:
    shard: int
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class Checkpoint:
    """One model directory: ``config``, tensor names, and tensors by name.

    Raises:
        InvalidCheckpoint: a file is missing, truncated, not safetensors, or not what its header says.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise InvalidCheckpoint(
                f"model directory {str(path)!r} does not exist; give a directory with config.json and "
                "*.safetensors, a model id in the local Hugging Face cache, or 'tiny'",
                param="model",
            )
        self.config = read_json(self.path / "config.json")
        self._maps: list[mmap.mmap] = []
        self._slots: dict[str, _Slot] = {}
        for file in self._files():
            self._map(file)
        self._overlay: dict[str, Array] = {}

    def _files(self) -> list[Path]:
        single, index = self.path / "model.safetensors", self.path / "model.safetensors.index.json"
        if index.is_file():
            names = sorted(set(read_json(index).get("weight_map", {}).values()))
            if not names:
                raise InvalidCheckpoint(f"{index.name} has no weight_map")
            return [self.path / name for name in names]
        if single.is_file():
            return [single]
        raise InvalidCheckpoint(f"{str(self.path)!r} has neither model.safetensors nor model.safetensors.index.json")

    def _map(self, file: Path) -> None:
        if not file.is_file():
            raise InvalidCheckpoint(f"shard {file.name} is missing")
        size = file.stat().st_size
        if size < 8:
            raise InvalidCheckpoint(f"{file.name} is truncated: {size} bytes")
        with file.open("rb") as stream:
            # Private, not read-only: torch refuses views it may not write. Nothing writes.
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        length = int.from_bytes(data[:8], "little")
        if length > min(_MAX_HEADER, size - 8):
            raise InvalidCheckpoint(f"{file.name} is truncated or not a safetensors file (header of {length} bytes)")
        try:
            header = json.loads(data[8 : 8 + length])
        except ValueError as error:
            raise InvalidCheckpoint(f"{file.name} is not a safetensors file: {error}") from None
        for name, entry in header.items():
            if name != "__metadata__":
                self._slots[name] = self._slot(file.name, name, entry, 8 + length, size)
        self._maps.append(data)

    def _slot(self, file: str, name: str, entry: Any, base: int, size: int) -> _Slot:
        try:
            dtype, shape = entry["dtype"], tuple(int(n) for n in entry["shape"])
            start, stop = (base + int(n) for n in entry["data_offsets"])
        except (TypeError, KeyError, ValueError):
            raise InvalidCheckpoint(f"{file}: the header entry of {name} is malformed") from None
        if dtype not in _DTYPES:
            raise InvalidCheckpoint(f"{file}: {name} has dtype {dtype}; supported are {', '.join(_DTYPES)}")
        if stop > size:
            raise InvalidCheckpoint(f"{file} is truncated: {name} ends at byte {stop}, the file at {size}")
        if start < base or stop - start != int(np.prod(shape)) * np.dtype(_DTYPES[dtype]).itemsize:
            raise InvalidCheckpoint(
                f"{file}: {name} has {stop - start} bytes, which is not its shape {shape} in {dtype}"
            )
        return _Slot(len(self._maps), dtype, shape, start, stop)

    @property
    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._slots)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._slots[name].shape

    def tensor(self, name: str) -> Array:
        """A tensor: uint16 bit patterns for bf16, else float32 (float16 is widened).

        Raises:
            InvalidCheckpoint: there is no such tensor.
        """
        if name in self._overlay:
            return self._overlay[name]
        slot = self._slots.get(name)
        if slot is None:
            raise InvalidCheckpoint(f"tensor {name} is missing from {str(self.path)!r}")
        count = int(np.prod(slot.shape))
        view = np.frombuffer(self._maps[slot.shard], _DTYPES[slot.dtype], count, slot.start).reshape(slot.shape)
        return view.astype(np.float32) if slot.dtype == "F16" else view

    def check(self, name: str, value: Array) -> None:
        """Whether ``value`` may stand for a tensor.

        Raises:
            InvalidCheckpoint: unknown name, other shape, or neither float32 nor uint16 (bf16).
        """
        if name not in self._slots:
            raise InvalidCheckpoint(f"weight update names {name}, which the model does not have", param=name)
        if value.shape != self.shape(name):
            raise InvalidCheckpoint(
                f"weight update of {name} has shape {value.shape}, not {self.shape(name)}", param=name
            )
        if value.dtype not in (np.float32, np.uint16):
            raise InvalidCheckpoint(f"weight update of {name} has dtype {value.dtype}; use float32 or bf16 as uint16")

    def replace(self, name: str, value: Array) -> None:
        """Let ``value`` stand for a tensor from now on (weight updates); ``check`` it first."""
        self._overlay[name] = np.ascontiguousarray(value)

    def fingerprint(self) -> str:
        """A short hash of the config and of samples of every tensor: differs for any other model."""
        digest = blake2b(json.dumps(self.config, sort_keys=True).encode(), digest_size=12)
        for name in sorted(self._slots):
            slot = self._slots[name]
            digest.update(f"{name}{slot.dtype}{slot.shape}".encode())
            data = self._maps[slot.shard]
            digest.update(data[slot.start : min(slot.stop, slot.start + _SAMPLE)])
            digest.update(data[max(slot.start, slot.stop - _SAMPLE) : slot.stop])
        return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; InvalidCheckpoint if it is missing or is none."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InvalidCheckpoint(f"{path.name} is missing from {str(path.parent)!r}") from None
    except (ValueError, OSError) as error:
        raise InvalidCheckpoint(f"{path.name} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise InvalidCheckpoint(f"{path.name} must hold a JSON object")
    return value


def widen(array: Array) -> npt.NDArray[np.float32]:
    """float32 values of a tensor as ``Checkpoint.tensor`` returns it."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(array, np.float32)
