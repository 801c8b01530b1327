"""Pythonic: the text is a list of calls, ``[f(x=1), g(y="a")]``, with literal keyword arguments only."""

from __future__ import annotations

import ast
import re
import warnings
from typing import Any

from statepool.engine.text.tools.stream import Region, ToolCall, ToolParser, write_call

_START, _END = "<|python_start|>", "<|python_end|>"
_HEAD = re.compile(r"\[\s*[A-Za-z_][\w.]*\s*\(")
_HEAD_SO_FAR = re.compile(r"\[\s*(?:[A-Za-z_][\w.]*\s*)?\Z")
_STRING_OR_BRACKET = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|[\[\](){}\"']", re.DOTALL)


class PythonicParser(ToolParser):
    """A Python list of calls at the start of the text, or between ``<|python_start|>`` and ``<|python_end|>``."""

    markers = (_START,)
    starts = ("[",)
    special = (_START, _END)

    def region(self, text: str, final: bool) -> Region | None:
        """See ``ToolParser.region``."""
        tag = len(_START) if text.startswith(_START) else 0
        rest = text[tag:].lstrip() if tag else text
        begin = len(text) - len(rest)
        refused: Region = (tag or 1, [])
        if not _HEAD.match(rest):
            return None if not final and (not rest or _HEAD_SO_FAR.match(rest)) else refused
        length = _list_end(rest)
        if length is None:
            return refused if final else None
        calls = _read(rest[:length])
        if not calls:
            return refused
        if not tag:
            return begin + length, calls
        behind = rest[length:].lstrip()
        if behind.startswith(_END):
            return len(text) - len(behind) + len(_END), calls
        if not final and _END.startswith(behind):
            return None
        return begin + length, calls


def _list_end(text: str) -> int | None:
    """Where the list that ``text`` begins with is closed."""
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        token = match.group()
        if token in ("'", '"'):
            return None
        if token in ("[", "(", "{"):
            depth += 1
        elif token in ("]", ")", "}"):
            depth -= 1
            if depth == 0:
                return match.end()
    return None


def _read(text: str) -> list[ToolCall]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a model's odd escape is not our caller's concern
            tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    if not isinstance(tree, ast.List):
        return []
    calls = [_read_call(node) for node in tree.elts]
    found = [call for call in calls if call is not None]
    return found if len(found) == len(calls) else []


def _read_call(node: ast.expr) -> ToolCall | None:
    if not isinstance(node, ast.Call) or node.args:
        return None
    arguments: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            return None
        try:
            arguments[keyword.arg] = _literal(keyword.value)
        except (ValueError, TypeError, RecursionError):
            return None
    return write_call(ast.unparse(node.func), arguments)


def _literal(node: ast.expr) -> Any:
    """A literal, with JSON's ``true``, ``false`` and ``null`` understood as well."""
    if isinstance(node, ast.Name) and node.id in {"true", "false", "null"}:
        return {"true": True, "false": False, "null": None}[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        keys = [ast.literal_eval(key) if key is not None else None for key in node.keys]
        if not all(isinstance(key, str) for key in keys):
            raise ValueError("keys must be strings")
        return dict(zip(keys, map(_literal, node.values), strict=True))
    return ast.literal_eval(node)


parse = PythonicParser.parse
