"""Llama 3: the text is ``{"name": "f", "parameters": {...}}``, several joined by ``;``, perhaps after a tag."""

from __future__ import annotations

from statepool.engine.text.tools.stream import Region, ToolParser, read_call, read_json_start

_TAG = "<|python_tag|>"


class Llama3Parser(ToolParser):
    """JSON objects at the start of the text, or behind ``<|python_tag|>`` anywhere."""

    markers = (_TAG,)
    starts = ("{",)
    separators = " \n\r\t;"
    special = (_TAG,)

    def region(self, text: str, final: bool) -> Region | None:
        """See ``ToolParser.region``."""
        tag = len(_TAG) if text.startswith(_TAG) else 0
        rest = text[tag:].lstrip()
        begin = len(text) - len(rest)
        refused: Region = (tag or 1, [])
        if rest and not rest.startswith("{"):
            return refused
        found = read_json_start(rest) if "}" in rest else None
        if found is None:
            return refused if final else None
        call = read_call(found[0], ("parameters", "arguments"))
        return (begin + found[1], [call]) if call else refused


parse = Llama3Parser.parse
