"""A KV pool larger than its memory: the newest blocks in frames of an array, the others in a file.

Block ids, tables and keys stay what they are (``BlockPool`` knows nothing of this); only where a block's bytes lie
changes. The file is scratch: it has no name and goes with the process. Every record has a checksum in memory, so a bad
read is an error and never a wrong key.
"""

from __future__ import annotations

import logging
import mmap
import os
import tempfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from statepool.core.errors import InvalidConfig, StatepoolError
from statepool.kv.layout import KVLayout
from statepool.native import kernels

I32 = npt.NDArray[np.int32]
_log = logging.getLogger(__name__)

AREA_BLOCKS = 64
"""Blocks of one layer that an area for reading holds, and so the longest window."""


class TierFailure(StatepoolError):
    """The file under the KV pool could not be read or written, or its bytes are not those that were written."""

    code = "slow_tier_failed"


def open_scratch(folder: str | None) -> int:
    """A new file without a name in ``folder`` (by default the system's folder for such), past the system's own cache.

    Raises:
        InvalidConfig: the folder cannot be written.
    """
    where = Path(folder or tempfile.gettempdir())
    try:
        with tempfile.TemporaryFile(dir=where) as file:
            direct = getattr(os, "O_DIRECT", 0)
            path = Path(f"/proc/self/fd/{file.fileno()}")
            if direct and path.exists():
                try:
                    fd = os.open(path, os.O_RDWR | direct)
                except OSError:  # such as tmpfs, which is memory itself
                    _log.warning(
                        "kv_folder: %s has no direct access; the system's cache comes on top of kv_budget", where
                    )
                else:
                    return fd
            return os.dup(file.fileno())
    except OSError as error:
        raise InvalidConfig(f"kv_folder: {where} cannot be written: {error.strerror}", param="kv_folder") from None


class Resident:
    """A pool that is all in memory."""

    def __init__(self, storage: npt.NDArray[Any]) -> None:
        self.storage = storage

    def place(self, layer: int, blocks: I32) -> tuple[npt.NDArray[Any], int, I32]:
        """(array, layer in it, blocks in it) where the kernels find ``blocks`` of ``layer``."""
        return self.storage, layer, blocks

    def in_memory(self, blocks: I32) -> I32 | None:
        """See ``TieredBlocks.in_memory``."""
        return blocks


class TieredBlocks:
    """``blocks`` blocks, of which ``frames`` at a time are in memory; the others are in a file.

    Args:
        layout: of a block.
        blocks: ids are below it.
        frames: blocks in memory.
        folder: where the file lies.
    """

    def __init__(self, layout: KVLayout, blocks: int, frames: int, folder: str | None = None) -> None:
        self.storage = layout.allocate(frames)
        self._layers, self._blocks = layout.layers, blocks
        self._shape, self._dtype = (1, *layout.block_shape[1:]), layout.numpy_dtype
        self._record = layout.block_bytes // layout.layers
        self._fd = open_scratch(folder)
        self._sums = np.zeros((layout.layers, blocks), np.uint32)
        self._written = np.zeros(blocks, bool)
        self._frame = np.full(blocks, -1, np.int32)
        self._recent: OrderedDict[int, None] = OrderedDict()  # blocks in memory, the longest unused first
        self._free = list(range(frames - 1, -1, -1))
        self._dirty: set[int] = set()
        self._reader = ThreadPoolExecutor(1, "kv-tier")
        # A window is in one while the next is read into the other; between windows the first serves all else.
        self._areas: list[npt.NDArray[Any]] = [self._area(1) for _ in range(2)]
        self.bytes_read = 0

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            self._reader.shutdown()
            os.close(self._fd)

    @property
    def memory(self) -> int:
        """Bytes of memory in use for blocks, the areas that they are read into included."""
        return int(self.storage.nbytes) + sum(area.nbytes for area in self._areas)

    def enter(self, blocks: Iterable[int], partial: Iterable[int]) -> I32:
        """Give each of ``blocks`` a frame, to be written by the step that begins; returns the frames of all block ids.

        What others held is in the file afterwards. The bytes of ``partial`` ones are kept, those of the rest are not.

        Raises:
            TierFailure: a block could not be written to the file or read from it.
        """
        wanted, kept = dict.fromkeys(blocks), set(partial)
        missing = [block for block in wanted if self._frame[block] < 0]
        victims: list[int] = []
        for block in self._recent:
            if len(self._free) + len(victims) >= len(missing):
                break
            if block not in wanted:
                victims.append(block)
        assert len(self._free) + len(victims) >= len(missing), "a step writes more blocks than there are frames"
        self._write_back(victims)
        for block in victims:
            del self._recent[block]
            self._free.append(int(self._frame[block]))
            self._frame[block] = -1
        for block in missing:
            frame = self._free[-1]
            if block in kept and self._written[block]:
                for layer in range(self._layers):
                    self._read(layer, [block], self.storage[frame : frame + 1, layer : layer + 1])
            self._frame[block] = self._free.pop()
        self._touch(wanted)
        self._dirty.update(wanted)
        return self._frame

    def in_memory(self, blocks: I32) -> I32 | None:
        """The frames of ``blocks``, in their shape, or None if one of them is not in memory."""
        frames: I32 = self._frame[blocks]
        return None if (frames < 0).any() else frames

    def place(self, layer: int, blocks: I32) -> tuple[npt.NDArray[Any], int, I32]:
        """As ``Resident.place``; valid until the next call.

        Raises:
            TierFailure: a block could not be read.
        """
        frames = self.in_memory(blocks)
        if frames is not None:
            self._touch(blocks.ravel().tolist())
            return self.storage, layer, frames
        unique, inverse = np.unique(blocks, return_inverse=True)
        return self._gather(0, layer, unique.tolist()), 0, inverse.reshape(blocks.shape).astype(np.int32)

    def windows(self, layer: int, blocks: I32, size: int) -> Iterator[tuple[npt.NDArray[Any], int]]:
        """``blocks`` of ``layer`` in order, ``size`` at a time: (array of one layer, blocks in it).

        A window is valid until the next is asked for, and that is read meanwhile.

        Raises:
            TierFailure: a block could not be read.
        """
        parts = [blocks[at : at + size].tolist() for at in range(0, len(blocks), size)]
        coming: Future[npt.NDArray[Any]] | None = None
        for i, part in enumerate(parts):
            window = coming.result() if coming is not None else self._gather(0, layer, part)
            if i + 1 < len(parts):
                coming = self._reader.submit(self._gather, 1 - i % 2, layer, parts[i + 1])
            yield window, len(part)

    def read(self, blocks: list[int]) -> npt.NDArray[Any]:
        """A copy of whole blocks ``[n, layers, 2, kv_heads, 16 * head_dim]``.

        Raises:
            TierFailure: a block could not be read.
        """
        out = np.empty((len(blocks), *self.storage.shape[1:]), self._dtype)
        for layer in range(self._layers):
            out[:, layer] = self._gather(0, layer, blocks)[:, 0]
        return out

    def write(self, blocks: list[int], data: npt.NDArray[Any]) -> None:
        """Overwrite whole blocks.

        Raises:
            TierFailure: a block could not be written.
        """
        for i, block in enumerate(blocks):
            if self._frame[block] >= 0:
                self.storage[self._frame[block]] = data[i]
                self._dirty.add(block)
            else:
                self._write([block], data[i : i + 1])

    def _touch(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self._recent[block] = None
            self._recent.move_to_end(block)

    # -- the file ----------------------------------------------------------------------------------

    def _area(self, blocks: int) -> npt.NDArray[Any]:
        """Memory for so many blocks of one layer, on a page of its own."""
        area = mmap.mmap(-1, max(blocks * self._record, mmap.PAGESIZE))
        flat = np.frombuffer(area, self._dtype, blocks * self._record // self._dtype.itemsize)
        return flat.reshape(blocks, *self._shape)

    def _room(self, area: int, blocks: int) -> npt.NDArray[Any]:
        """Memory for so many blocks of one layer: an area, which stays, or more for the moment."""
        if blocks > AREA_BLOCKS:
            return self._area(blocks)
        if len(self._areas[area]) < blocks:
            self._areas[area] = self._area(AREA_BLOCKS)
        return self._areas[area][:blocks]

    def _gather(self, area: int, layer: int, blocks: list[int]) -> npt.NDArray[Any]:
        """Blocks of one layer side by side in the given area."""
        out = self._room(area, len(blocks))
        frames = self._frame[blocks].tolist()
        at = 0
        while at < len(blocks):
            end = at + 1
            if frames[at] >= 0:
                out[at, 0] = self.storage[frames[at], layer]
            else:
                while end < len(blocks) and frames[end] < 0 and blocks[end] == blocks[end - 1] + 1:
                    end += 1
                self._read(layer, blocks[at:end], out[at:end])
            at = end
        return out

    def _read(self, layer: int, blocks: list[int], out: npt.NDArray[Any]) -> None:
        """Read consecutive blocks of one layer into ``out``, which is contiguous."""
        assert kernels is not None
        assert self._written[blocks].all(), "a block is read before it was written"
        data, done = memoryview(out.data).cast("B"), 0
        start = (layer * self._blocks + blocks[0]) * self._record
        while done < len(data):
            try:
                got = os.preadv(self._fd, [data[done:]], start + done)
            except OSError as error:
                raise TierFailure(_describe("reading", len(data), start, str(error.strerror))) from None
            if got == 0:
                raise TierFailure(_describe("reading", len(data), start, "the file ends there"))
            done += got
        sums = np.empty(len(blocks), np.uint32)
        kernels.checksums(np.frombuffer(data, np.uint8).reshape(len(blocks), -1), sums)
        if not np.array_equal(sums, self._sums[layer, blocks]):
            raise TierFailure(_describe("reading", len(data), start, "the bytes do not match their checksum"))
        self.bytes_read += done

    def _write_back(self, victims: list[int]) -> None:
        dirty = sorted(block for block in victims if block in self._dirty)
        for at in range(0, len(dirty), 64):
            part = dirty[at : at + 64]
            self._write(part, self.storage[self._frame[part]])
        self._dirty.difference_update(victims)

    def _write(self, blocks: list[int], data: npt.NDArray[Any]) -> None:
        """Write whole blocks, ascending; runs of neighbours go together."""
        assert kernels is not None
        borders = [0, *(i for i in range(1, len(blocks)) if blocks[i] != blocks[i - 1] + 1), len(blocks)]
        for layer in range(self._layers):
            records = self._room(0, len(blocks))
            records[:, 0] = data[:, layer]
            rows = records.view(np.uint8).reshape(len(blocks), -1)
            sums = np.empty(len(blocks), np.uint32)
            kernels.checksums(rows, sums)
            self._sums[layer, blocks] = sums
            for begin, end in pairwise(borders):
                self._put(rows[begin:end], (layer * self._blocks + blocks[begin]) * self._record)
        self._written[blocks] = True

    def _put(self, rows: npt.NDArray[np.uint8], start: int) -> None:
        data, done = memoryview(rows.reshape(-1).data), 0
        while done < len(data):
            try:
                done += os.pwrite(self._fd, data[done:], start + done)
            except OSError as error:
                raise TierFailure(_describe("writing", len(data), start, str(error.strerror))) from None


def _describe(doing: str, count: int, start: int, why: str) -> str:
    return f"slow tier: {doing} {count} bytes at {start} failed: {why}"
