"""Mistral: ``[TOOL_CALLS] [{"name": "f", "arguments": {...}}]`` or ``[TOOL_CALLS]f[ARGS]{...}``."""

from __future__ import annotations

import re

from statepool.engine.text.tools.stream import Region, ToolParser, read_call, read_json_start, write_call

_MARK = "[TOOL_CALLS]"
_NAME = re.compile(r"\s*([A-Za-z0-9_.:-]+)\s*(?:\[ARGS\])?\s*(?=\{)")
_BEGINNING = re.compile(r"\s*(?:[A-Za-z0-9_.:-]*\s*(?:\[A?R?G?S?\]?)?\s*)\Z")


class MistralParser(ToolParser):
    """A marker, then a list of calls, or one call as name and arguments; a list may also begin the text by itself."""

    markers = (_MARK,)
    starts = ("[{",)
    special = (_MARK, "[ARGS]")

    def region(self, text: str, final: bool) -> Region | None:
        """See ``ToolParser.region``."""
        tag = len(_MARK) if text.startswith(_MARK) else 0
        refused: Region = (tag or 1, [])
        body = text[tag:]
        begin = len(text) - len(body.lstrip())
        if text[begin:].startswith("["):
            found = read_json_start(text[begin:]) if "]" in text[begin:] else None
            if found is None:
                return refused if final else None
            calls = [read_call(item) for item in found[0]]
            read = [call for call in calls if call is not None]
            return (begin + found[1], read) if read and len(read) == len(calls) else refused
        named = _NAME.match(body)
        if named is None:
            return refused if final or not _BEGINNING.match(body) else None
        found = read_json_start(body[named.end() :]) if "}" in body else None
        if found is None:
            return refused if final else None
        call = write_call(named.group(1), found[0])
        return (tag + named.end() + found[1], [call]) if call else refused


parse = MistralParser.parse
