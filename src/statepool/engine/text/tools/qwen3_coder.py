"""Qwen3-Coder: ``<tool_call><function=f><parameter=x>value</parameter></function></tool_call>``.

Values carry no type. A parameter that the tool's schema declares as something other than a string is
read as JSON; everything else stays text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from statepool.engine.text.tools.stream import Region, ToolCall, ToolParser, read_json, write_call

_OPEN, _CLOSE, _END = "<tool_call>", "</tool_call>", "</function>"
_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>(.*)</function>\s*\Z", re.DOTALL)
_PARAMETER = re.compile(r"\s*<parameter=([^>\n]+)>(.*?)</parameter>(?=\s*(?:<parameter=|\Z))", re.DOTALL)


class Qwen3CoderParser(ToolParser):
    """Markup with one element per parameter; the last closing tag may be missing at the end."""

    markers = (_OPEN,)

    def region(self, text: str, final: bool) -> Region | None:
        """See ``ToolParser.region``."""
        end = text.find(_CLOSE)
        while end >= 0:
            body = text[len(_OPEN) : end]
            # A value may hold the closing tag: the call is over only after its function is.
            if body.rstrip().endswith(_END) or "<function=" not in body:
                call = self._read(body)
                return (end + len(_CLOSE), [call]) if call else (len(_OPEN), [])
            end = text.find(_CLOSE, end + 1)
        if not final:
            return None
        call = self._read(text[len(_OPEN) :])
        return (len(text), [call]) if call else (len(_OPEN), [])

    def _read(self, body: str) -> ToolCall | None:
        function = _FUNCTION.match(body)
        if function is None:
            return None
        name, inner = function.group(1).strip(), function.group(2)
        types = self._types(name)
        arguments: dict[str, Any] = {}
        position = 0
        while match := _PARAMETER.match(inner, position):
            key, value = match.group(1).strip(), match.group(2)
            arguments[key] = _typed(value.removeprefix("\n").removesuffix("\n"), types.get(key))
            position = match.end()
        return None if inner[position:].strip() or not name else write_call(name, arguments)

    def _types(self, name: str) -> Mapping[str, Any]:
        for tool in self._tools:
            function = tool.get("function", tool)
            if isinstance(function, Mapping) and function.get("name") == name:
                parameters = function.get("parameters")
                properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
                return properties if isinstance(properties, Mapping) else {}
        return {}


def _typed(value: str, schema: Any) -> Any:
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    kinds = kind if isinstance(kind, list) else [kind]
    if kind is None or "string" in kinds:
        return value
    lowered = {"True": True, "False": False, "None": None}
    if value.strip() in lowered:
        return lowered[value.strip()]
    found = read_json(value)
    return value if found is None and value.strip() != "null" else found


parse = Qwen3CoderParser.parse
