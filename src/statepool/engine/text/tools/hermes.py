"""Hermes and Qwen: ``<tool_call>{"name": "f", "arguments": {...}}</tool_call>``."""

from __future__ import annotations

from statepool.engine.text.tools.stream import Region, ToolCall, ToolParser, inside_string, read_call, read_json

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


class HermesParser(ToolParser):
    """A JSON object, or a list of them, between tags; the closing tag may be missing at the end."""

    markers = (_OPEN,)

    def region(self, text: str, final: bool) -> Region | None:
        """See ``ToolParser.region``."""
        end = text.find(_CLOSE)
        while end >= 0:
            body = text[len(_OPEN) : end]
            if not inside_string(body):
                calls = _read(body)
                return (end + len(_CLOSE), calls) if calls else (len(_OPEN), [])
            end = text.find(_CLOSE, end + 1)
        if not final:
            return None
        calls = _read(text[len(_OPEN) :])
        return (len(text), calls) if calls else (len(_OPEN), [])


def _read(body: str) -> list[ToolCall]:
    value = read_json(body.strip())
    calls = [read_call(item) for item in (value if isinstance(value, list) else [value])]
    found = [call for call in calls if call is not None]
    return found if len(found) == len(calls) else []


parse = HermesParser.parse
