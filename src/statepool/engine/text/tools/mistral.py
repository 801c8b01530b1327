"""Mistral: ``[TOOL_CALLS] [{"name": "f", "arguments": {...}}]`` or ``[TOOL_CALLS]f[ARGS]{...}``."""

from __future__ import annotations

import re

from statepool.engine.text.tools.stream import Region, ToolParser, read_call, read_json_start, write_call

_MARK = "[TOOL_CALLS]"
_NAME = re.compile(r"\s*([A-Za-z0-9_.:-]+)\s*(?:\[ARGS\])?\s*(?=\{)")
_BEGINNING = re.compile(r"\s*(?:[A-Za-z0-9_.:-]*\s*(?:\[A?R?G?S?\]?)?\s*)\Z")


class MistralParser(ToolParser):
    """A marker, then a list of calls, or one call as name and arguments."""

    markers = (_MARK,)
    needs_special = True

    def region(self, text: str, final: bool) -> Region | None:
        """See ``ToolParser.region``."""
        body = text[len(_MARK) :]
        stripped = body.lstrip()
        begin = len(text) - len(stripped)
        if stripped.startswith("["):
            return self._list(text, begin, final)
        named = _NAME.match(body)
        if named is None:
            return (len(_MARK), []) if final or not _BEGINNING.match(body) else None
        found = read_json_start(body[named.end() :]) if "}" in body else None
        if found is None:
            return (len(_MARK), []) if final else None
        call = write_call(named.group(1), found[0])
        return (len(_MARK) + named.end() + found[1], [call]) if call else (len(_MARK), [])

    def _list(self, text: str, begin: int, final: bool) -> Region | None:
        found = read_json_start(text[begin:]) if "]" in text[begin:] else None
        if found is None:
            return (len(_MARK), []) if final else None
        value, length = found
        calls = [read_call(item) for item in value]
        read = [call for call in calls if call is not None]
        return (begin + length, read) if read and len(read) == len(calls) else (len(_MARK), [])


parse = MistralParser.parse
