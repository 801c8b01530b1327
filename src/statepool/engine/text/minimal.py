"""The shortest documents of a JSON schema, derived from the schema: the material endings are built from.

Sizes of recursive schemas are a least fixed point (Knuth 1977, "A generalization of Dijkstra's
algorithm"): start with no document known, and shorten until nothing changes. Nothing here has to be
exact, since every use is confirmed by the grammar; keywords that are not understood are left to
``leaf``, which asks the grammar.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from statepool.engine.text.closing import Pieces

Leaf = Callable[[Any], bytes | None]

_ROUNDS = 64
_MAX_PIECES = 512
_PLAIN: dict[str, bytes] = {
    "null": b"null",
    "boolean": b"true",
    "integer": b"0",
    "number": b"0",
    "string": b'""',
    "array": b"[]",
    "object": b"{}",
}
_NOTES = frozenset(
    {"title", "description", "default", "examples", "$schema", "$id", "$comment", "$defs", "definitions", "strict"}
)


class MinimalDocuments:
    """Shortest known document of every subschema of ``root``."""

    def __init__(self, root: Any, leaf: Leaf) -> None:
        """``leaf`` gives a shortest document of a schema without references, or None."""
        self._root = root
        self._leaf = leaf
        self._known: dict[int, bytes] = {}
        self._leaves: dict[str, bytes | None] = {}
        self._nodes = _subschemas(root)
        self._own = frozenset(map(id, self._nodes))
        for _ in range(_ROUNDS):
            if not self._improve():
                break

    @property
    def root(self) -> bytes | None:
        """The shortest known document of the whole schema."""
        return self._known.get(id(self._root))

    def pieces(self) -> Pieces:
        """Values and members to build endings from: required members first, then by length."""
        values = {*self._known.values(), *Pieces().values}
        required: set[bytes] = set()
        optional: set[bytes] = set()
        for node in self._nodes:
            if not isinstance(node, Mapping):
                continue
            for choice in _choices(node):
                values.add(_dump(choice))
            names = node.get("required")
            names = names if isinstance(names, list) else []
            properties = node.get("properties")
            for name, inner in properties.items() if isinstance(properties, Mapping) else ():
                document = self._known.get(id(inner))
                if document is not None:
                    (required if name in names else optional).add(_dump(name) + b":" + document)
        order = [*sorted(required, key=_by_length), *sorted(optional, key=_by_length)]
        return Pieces(tuple(sorted(values, key=_by_length))[:_MAX_PIECES], tuple(order)[:_MAX_PIECES])

    def _improve(self) -> bool:
        changed = False
        for node in self._nodes:
            found = self._document(node)
            known = self._known.get(id(node))
            if found is not None and (known is None or len(found) < len(known)):
                self._known[id(node)] = found
                changed = True
        return changed

    def _of(self, node: Any) -> bytes | None:
        """The known document of ``node``; of nodes made here (merged ones) it is derived at once."""
        known = self._known.get(id(node))
        return known if known is not None or id(node) in self._own else self._document(node)

    def _document(self, node: Any) -> bytes | None:
        if node is True:
            return b"0"
        if not isinstance(node, Mapping):
            return None
        if "$ref" in node:
            target = resolve(self._root, node["$ref"])
            return None if target is None else self._known.get(id(target))
        choices = _choices(node)
        if choices:
            return min((_dump(choice) for choice in choices), key=_by_length)
        for word in ("anyOf", "oneOf"):
            if isinstance(node.get(word), list):
                rest = {key: value for key, value in node.items() if key != word and key not in _NOTES}
                branches = node[word] if not rest else [_merge(rest, branch, self._root) for branch in node[word]]
                return _least(self._of(branch) for branch in branches)
        if isinstance(node.get("allOf"), list):
            merged: Any = {key: value for key, value in node.items() if key != "allOf"}
            for part in node["allOf"]:
                merged = _merge(merged, part, self._root)
            return self._document(merged) if "allOf" not in merged else None
        return _least(self._typed(node, kind) for kind in _types(node))

    def _typed(self, node: Mapping[str, Any], kind: str) -> bytes | None:
        if kind == "object":
            return self._object(node)
        if kind == "array":
            return self._array(node)
        words = {key: value for key, value in node.items() if key not in _NOTES and key != "type"}
        if kind in _PLAIN and not words:
            return _PLAIN[kind]
        if kind == "string" and words.keys() <= {"minLength", "maxLength"}:
            least = words.get("minLength", 0)
            return b'"' + b"a" * least + b'"' if isinstance(least, int) else None
        key = json.dumps([kind, words], sort_keys=True, default=str)
        if key not in self._leaves:
            self._leaves[key] = self._leaf({**words, "type": kind})
        return self._leaves[key]

    def _object(self, node: Mapping[str, Any]) -> bytes | None:
        properties = node.get("properties")
        properties = properties if isinstance(properties, Mapping) else {}
        required = [name for name in node.get("required", []) if isinstance(name, str)]
        names = [name for name in properties if name in required]
        names += [name for name in dict.fromkeys(required) if name not in properties]
        members = []
        for name in names:
            inner = properties.get(name, node.get("additionalProperties", True))
            document = b"0" if inner is True else self._of(inner)
            if document is None:
                return None
            members.append(_dump(name) + b":" + document)
        return b"{" + b",".join(members) + b"}"

    def _array(self, node: Mapping[str, Any]) -> bytes | None:
        least = node.get("minItems", 0)
        if not isinstance(least, int) or least > 100_000:
            return None
        prefix = node.get("prefixItems")
        prefix = prefix if isinstance(prefix, list) else []
        items = []
        for index in range(least):
            inner = prefix[index] if index < len(prefix) else node.get("items", True)
            document = b"0" if inner is True else self._of(inner)
            if document is None:
                return None
            items.append(document)
        return b"[" + b",".join(items) + b"]"


def resolve(root: Any, reference: Any) -> Any:
    """The subschema a local ``$ref`` points to, or None."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    node = root
    for step in reference[1:].split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(node, Mapping) and step in node:
            node = node[step]
        elif isinstance(node, list) and step.isdigit() and int(step) < len(node):
            node = node[int(step)]
        else:
            return None
    return node


def _subschemas(node: Any) -> list[Any]:
    """Every mapping and boolean inside ``node``, inner ones first, each object once."""
    stack, seen, found = [node], set[int](), list[Any]()
    while stack:
        current = stack.pop()
        if id(current) in seen and not isinstance(current, bool):
            continue
        seen.add(id(current))
        if isinstance(current, Mapping):
            found.append(current)
            stack.extend(current.values())
        elif isinstance(current, list):
            stack.extend(current)
    found.reverse()
    return found


def _choices(node: Mapping[str, Any]) -> list[Any]:
    if "const" in node:
        return [node["const"]]
    values = node.get("enum")
    return values if isinstance(values, list) else []


def _types(node: Mapping[str, Any]) -> list[str]:
    kind = node.get("type")
    if isinstance(kind, str):
        return [kind]
    if isinstance(kind, list):
        return [name for name in kind if isinstance(name, str)]
    if node.keys() & {"properties", "required", "additionalProperties", "minProperties"}:
        return ["object"]
    if node.keys() & {"items", "prefixItems", "minItems"}:
        return ["array"]
    if node.keys() & {"pattern", "minLength", "maxLength", "format"}:
        return ["string"]
    return ["number"]


def _merge(left: Mapping[str, Any], right: Any, root: Any) -> Any:
    """Both schemas at once, as far as the shortest document is concerned."""
    if isinstance(right, Mapping) and "$ref" in right:
        right = resolve(root, right["$ref"])
    if not isinstance(right, Mapping):
        return dict(left)
    merged = {**left, **right}
    for word in ("properties", "$defs"):
        if isinstance(left.get(word), Mapping) and isinstance(right.get(word), Mapping):
            merged[word] = {**left[word], **right[word]}
    if isinstance(left.get("required"), list) and isinstance(right.get("required"), list):
        merged["required"] = [*left["required"], *right["required"]]
    return merged


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _least(documents: Iterator[bytes | None]) -> bytes | None:
    return min((document for document in documents if document is not None), key=_by_length, default=None)


def _by_length(data: bytes) -> tuple[int, bytes]:
    return len(data), data
