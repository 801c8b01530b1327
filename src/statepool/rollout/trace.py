"""What happened in an iteration, as files: a line per response, a picture, and the events with their decisions.

The list of events is enough to make the scheduler decide again: ``replay`` does so and compares every byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any, TextIO

import msgspec

from statepool.core.errors import InvalidRequest
from statepool.rollout import events as words
from statepool.rollout.core import Core
from statepool.rollout.groups import ChunkRecord, Response
from statepool.rollout.policies import make

__all__ = ["EventLog", "draw", "read_lengths", "replay", "trace_line", "write_trace"]

_KINDS = {name: kind for name in words.__all__ if isinstance(kind := getattr(words, name), type)}


def trace_line(response: Response, prompt_len: int, max_len: int, iteration: int = 0) -> dict[str, Any]:
    """A response as one record of a trace."""
    return {
        "iter": iteration,
        "group": response.group,
        "idx": response.index,
        "prompt_len": prompt_len,
        "out_len": response.chosen,
        "max_len": max_len,
        "finish_reason": response.finish_reason,
        "policy_version": response.version,
        "chunks": [[c.instance, round(c.began, 6), round(c.ended, 6), c.start, c.stop] for c in response.chunks],
        "draft": [response.drafted, response.accepted],
        "tools": [[round(asked, 6), round(told, 6)] for asked, told in response.calls],
    }


def write_trace(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Write a trace, replacing what was there."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    part.replace(path)


class _Line(msgspec.Struct):
    group: str
    idx: int
    out_len: int
    max_len: int
    prompt_len: int = 0


def read_lengths(path: Path) -> list[_Line]:
    """The lengths of a trace, for the simulator.

    Raises:
        InvalidRequest: a line lacks a field or has one of the wrong type.
    """
    decoder = msgspec.json.Decoder(_Line)
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line.strip():
            try:
                found.append(decoder.decode(line))
            except msgspec.DecodeError as error:
                raise InvalidRequest(f"{path}:{number}: {error}", param="trace") from None
            if not 1 <= found[-1].out_len <= found[-1].max_len:
                raise InvalidRequest(f"{path}:{number}: out_len must be from 1 to max_len", param="trace")
    if not found:
        raise InvalidRequest(f"{path} holds no response", param="trace")
    return found


class EventLog:
    """Writes events and decisions as they come: ``record`` of a controller or a simulation.

    Args:
        header: what the policy was made of (``policies.make``), the first line of the file.
    """

    def __init__(self, file: TextIO, header: Mapping[str, Any]) -> None:
        self._file = file
        file.write(msgspec.json.encode(header).decode() + "\n")

    def __call__(self, events: Sequence[words.Event], decisions: Sequence[words.Decision]) -> None:
        """Write one moment."""
        self._file.write(_moment(events, decisions) + "\n")


def replay(lines: Iterator[str]) -> int:
    """Decide on recorded events again; how many decisions there were, all of them as recorded, byte for byte.

    Raises:
        InvalidRequest: a decision differs, or a line cannot be read; the message names the line.
    """
    core, count = _core(next(lines, "")), 0
    for number, line in enumerate(lines, 2):
        try:
            recorded = msgspec.json.decode(line)
        except msgspec.DecodeError as error:
            raise InvalidRequest(f"line {number} is no JSON: {error}", param="events") from None
        events = [_read(entry) for entry in recorded["events"]]
        decisions = core.on_event(*events)
        count += len(decisions)
        again = _moment(events, decisions)
        if again != line.rstrip("\n"):
            raise InvalidRequest(f"line {number}: the decisions differ from those recorded", param="events")
    return count


def _core(header: str) -> Core:
    """A scheduler as it was at the start of a recording."""
    try:
        made = msgspec.json.decode(header)
        policy = make(made["policy"], made["chunk"], seed=made["seed"], drafts=made["drafts"])
        return Core(policy, block=made["block"])
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise InvalidRequest(f"line 1 does not name the policy that decided: {error}", param="events") from None


def _moment(events: Sequence[words.Event], decisions: Sequence[words.Decision]) -> str:
    moment = {"events": [_write(each) for each in events], "decisions": [_write(each) for each in decisions]}
    return msgspec.json.encode(moment).decode()


def _write(value: words.Event | words.Decision) -> dict[str, Any]:
    return {"is": type(value).__name__, **asdict(value)}


def _read(entry: dict[str, Any]) -> words.Event:
    kind = _KINDS.get(entry.pop("is"))
    if kind is None:
        raise InvalidRequest("an event of an unknown kind", param="events")
    found: words.Event = msgspec.convert(entry, kind)
    return found


_WIDTH, _LEFT, _TOP, _LANE, _MOST = 900, 60, 34, 90, 4000
_COLOURS = ("#1667b7", "#d07a1c", "#3a8f4d", "#a23b72", "#6b5bb0", "#8a6d3b", "#2a9d9d", "#c0392b")


def draw(chunks: Sequence[tuple[int, ChunkRecord]], instances: int, title: str) -> str:
    """Who ran where and when, as the text of an SVG file: a lane per instance, a bar per chunk, a colour per group.

    Args:
        chunks: the number of the group of each, and the chunk; of very many, an even selection is drawn.
    """
    last = max((chunk.ended for _, chunk in chunks), default=1.0) or 1.0
    shown = chunks[:: -(-len(chunks) // _MOST)] if chunks else []
    height = _TOP + instances * (_LANE + 12) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 20}" height="{height}">',
        "<style>text{font:11px sans-serif;fill:#333}.t{font-weight:bold}.l{fill:#f5f5f5}</style>",
        f'<text class="t" x="{_LEFT}" y="16">{escape(title)}</text>',
    ]
    for number in range(instances):
        top = _TOP + number * (_LANE + 12)
        mine = sorted((chunk.began, chunk.ended, group) for group, chunk in shown if chunk.instance == number)
        rows = _rows(mine)
        thick = _LANE / max(len(set(rows)), 1)
        parts.append(f'<rect class="l" x="{_LEFT}" y="{top}" width="{_WIDTH}" height="{_LANE}"/>')
        parts.append(f'<text x="4" y="{top + _LANE / 2}">engine {number}</text>')
        for (began, ended, group), row in zip(mine, rows, strict=True):
            x, wide = _LEFT + began / last * _WIDTH, max((ended - began) / last * _WIDTH, 0.3)
            colour, tall = _COLOURS[group % len(_COLOURS)], max(thick * 0.9, 0.3)
            parts.append(
                f'<rect x="{x:.1f}" y="{top + row * thick:.1f}" width="{wide:.1f}" height="{tall:.2f}" '
                f'fill="{colour}"><title>group {group}: {began:.2f}-{ended:.2f} s</title></rect>'
            )
    parts.append(f'<text x="{_LEFT}" y="{height - 10}">0 s</text>')
    parts.append(f'<text x="{_LEFT + _WIDTH - 50}" y="{height - 10}">{last:.1f} s</text></svg>')
    return "\n".join(parts) + "\n"


def _rows(bars: Sequence[tuple[float, float, int]]) -> list[int]:
    """A row for each bar so that none cover each other; the first that is free."""
    free: list[float] = []
    rows = []
    for began, ended, _ in bars:
        row = next((i for i, until in enumerate(free) if until <= began + 1e-9), len(free))
        if row == len(free):
            free.append(0.0)
        free[row] = ended
        rows.append(row)
    return rows
