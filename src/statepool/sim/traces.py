"""Recorded requests: Mooncake's JSONL, the Azure CSV, and the checks that keep a bad row from becoming a result."""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import msgspec

from statepool.core.errors import InvalidRequest

__all__ = ["Call", "InvalidTrace", "jittered", "quantum", "read_trace", "scaled", "sped_up"]

BLOCK = 512
"""Tokens of a block in the published traces."""

_LONGEST_LINE = 1 << 20
_LONGEST_PROMPT = 1 << 24


class InvalidTrace(InvalidRequest):
    """A trace file has a row that cannot be replayed."""

    code = "invalid_trace"


@dataclass(frozen=True, slots=True)
class Call:
    """One recorded request."""

    at: float
    """Arrival in seconds since the first one."""
    prompt: int
    """Tokens of the prompt."""
    output: int
    """Tokens of the answer, which no policy may look at before it is written."""
    keys: tuple[int, ...] = ()
    """A number per block of the prompt, the last partial one included; equal numbers mean equal prefixes."""


class _Row(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]


def read_trace(path: Path, block: int = BLOCK) -> list[Call]:
    """The calls of a ``.jsonl`` (Mooncake) or ``.csv`` (Azure) file, in order of arrival.

    Args:
        path: the file.
        block: tokens per entry of ``hash_ids``.

    Raises:
        InvalidTrace: a row is malformed or contradicts an earlier one; the sentence names the row.
    """
    if path.suffix not in {".jsonl", ".csv"}:
        raise InvalidTrace(f"{path.name}: a trace is a .jsonl (Mooncake) or .csv (Azure) file", param="trace")
    if block < 1:
        raise InvalidTrace(f"block is {block}; it must be at least 1", param="block")
    calls = list(_mooncake(path, block) if path.suffix == ".jsonl" else _azure(path))
    if not calls:
        raise InvalidTrace(f"{path.name} has no rows", param="trace")
    start = calls[0].at
    return [replace(call, at=call.at - start) for call in calls]


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        row = 0
        while line := file.readline(_LONGEST_LINE + 1):
            row += 1
            if len(line) > _LONGEST_LINE:
                raise _bad(path, row, f"is longer than {_LONGEST_LINE} bytes")
            yield row, line


def _bad(path: Path, row: int, why: str) -> InvalidTrace:
    return InvalidTrace(f"{path.name}: row {row} {why}", param="trace")


def _mooncake(path: Path, block: int) -> Iterator[Call]:
    decoder = msgspec.json.Decoder(_Row)
    parents: dict[int, int] = {}
    before = 0.0
    for row, line in _lines(path):
        if not line.strip():
            continue
        try:
            read = decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _bad(path, row, f"is not a request: {error}") from error
        _check(path, row, read.timestamp, before, read.input_length, read.output_length)
        _check_blocks(path, row, read.input_length, read.hash_ids, block)
        _check_chain(path, row, read.hash_ids, parents)
        before = read.timestamp
        yield Call(read.timestamp / 1000, read.input_length, read.output_length, tuple(read.hash_ids))


def _azure(path: Path) -> Iterator[Call]:
    lines = ((row, line.decode("utf-8", errors="replace")) for row, line in _lines(path))
    row, header = next(lines, (1, ""))
    names = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]
    if header.strip().split(",") != names:
        raise _bad(path, row, f"must be the header {','.join(names)}")
    before = 0.0
    for row, line in lines:
        cells = next(csv.reader([line.strip()]), [])
        if not cells:
            continue
        if len(cells) != 3:
            raise _bad(path, row, f"has {len(cells)} cells, not 3")
        try:
            # Seven digits of fraction are one more than a datetime holds.
            whole, _, fraction = cells[0].partition(".")
            at = datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(f"0.{fraction or 0}")
            prompt, output = int(cells[1]), int(cells[2])
        except ValueError as error:
            raise _bad(path, row, f"is not a request: {error}") from error
        _check(path, row, at, before, prompt, output)
        before = at
        yield Call(at, prompt, output)


def _check(path: Path, row: int, at: float, before: float, prompt: int, output: int) -> None:
    if not math.isfinite(at) or at < 0:
        raise _bad(path, row, f"has the timestamp {at}; it must be a number from 0")
    if at < before:
        raise _bad(path, row, f"is earlier ({at}) than the row before it ({before}); sort the file by timestamp")
    if not 0 < prompt <= _LONGEST_PROMPT:
        raise _bad(path, row, f"has a prompt of {prompt} tokens; it must be from 1 to {_LONGEST_PROMPT}")
    if not 0 < output <= _LONGEST_PROMPT:
        raise _bad(path, row, f"has an answer of {output} tokens; it must be from 1 to {_LONGEST_PROMPT}")


def _check_blocks(path: Path, row: int, prompt: int, keys: list[int], block: int) -> None:
    wanted = -(-prompt // block)
    if len(keys) == wanted:
        return
    fitting = [size for size in (16, 32, 64, 128, 256, 512, 1024) if size != block and len(keys) == -(-prompt // size)]
    hint = f"; these look like blocks of {fitting[0]} tokens, so read it with --block {fitting[0]}" if fitting else ""
    raise _bad(path, row, f"has {len(keys)} hash_ids for {prompt} tokens, not {wanted} of {block} tokens{hint}")


def _check_chain(path: Path, row: int, keys: list[int], parents: dict[int, int]) -> None:
    if len(set(keys)) != len(keys):
        raise _bad(path, row, "names a block twice; a block's number stands for its whole prefix")
    parent = -1
    for key in keys:
        if key < 0:
            raise _bad(path, row, f"has the block number {key}; it must be from 0")
        known = parents.setdefault(key, parent)
        if known != parent:
            raise _bad(path, row, f"has block {key} after another prefix than an earlier row")
        parent = key


def quantum(calls: Sequence[Call]) -> float:
    """The step of the timestamps in seconds if many calls share one, else 0.

    A trace that was rounded to 3 s shows ten calls at once where there were ten in 3 s.
    """
    times = sorted({call.at for call in calls})
    if len(times) < 2 or len(times) * 2 > len(calls):
        return 0.0
    return min(later - earlier for earlier, later in pairwise(times))


def jittered(calls: Sequence[Call], within: float, seed: int) -> list[Call]:
    """The calls, each later by a random share of ``within`` seconds, in their new order."""
    draw = random.Random(seed)
    return sorted((replace(call, at=call.at + draw.random() * within) for call in calls), key=lambda call: call.at)


def scaled(calls: Iterable[Call], scale: float) -> list[Call]:
    """The calls with prompts and answers ``scale`` times as long, as ``replay.play`` sends them.

    Raises:
        InvalidTrace: ``scale`` is not a number above 0.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise InvalidTrace(f"scale is {scale}; it must be a number above 0", param="scale")
    return [
        replace(call, prompt=max(1, round(call.prompt * scale)), output=max(1, round(call.output * scale)))
        for call in calls
    ]


def sped_up(calls: Iterable[Call], speed: float) -> list[Call]:
    """The calls as if they had come ``speed`` times as fast.

    Raises:
        InvalidTrace: ``speed`` is not a number above 0.
    """
    if not (math.isfinite(speed) and speed > 0):
        raise InvalidTrace(f"speed is {speed}; it must be a number above 0", param="speed")
    return [replace(call, at=call.at / speed) for call in calls]
