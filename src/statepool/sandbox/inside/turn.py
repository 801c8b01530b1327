"""Did the cells since a moment change anything? A yes may be wrong, a no is not.

A moment is a fork, so its process still has the state of then, at the same addresses: both sides are asked for a digest
of their names. Plain values count by content, all others by address, and the latter is enough only for cells that
cannot reach inside them. So a cell is *quiet* if its code touches nothing but names of plain values, builtins without
effects, and modules that keep no state; any other cell counts as a change.
"""

from __future__ import annotations

import ast
import os
import random
import sys
import types
from collections.abc import Sequence
from typing import Any

from statepool.sandbox.inside import display

__all__ = ["digest", "quiet"]

_BUILTINS = frozenset(
    "abs all any ascii bin bool bytes chr dict divmod enumerate filter float format frozenset hash hex int isinstance "  # noqa: SIM905
    "len list map max min oct ord pow print range repr reversed round set slice sorted str sum tuple type zip".split()
)
_MODULES = {"math", "statistics", "json", "re", "string", "textwrap", "itertools", "operator", "posixpath", "numpy"}
_STATEFUL = {"random", "seterr", "seterrcall", "set_printoptions", "setbufsize", "purge", "save", "savetxt", "savez"}
"""Of those modules: what does keep state, or writes files."""
_NODES = tuple(
    getattr(ast, name)
    for name in (  # noqa: SIM905
        "Module Expr Assign AugAssign If For Pass Break Continue Name Constant BinOp UnaryOp BoolOp Compare "
        "IfExp Tuple List Dict Set Subscript Slice Attribute Call keyword Starred JoinedStr FormattedValue "
        "ListComp SetComp DictComp GeneratorExp comprehension operator unaryop boolop cmpop expr_context"
    ).split()
)
_SCALARS = (type(None), bool, float, complex, str, bytes, type(Ellipsis))


def quiet(code: str, space: dict[str, Any]) -> bool:
    """Whether a cell that has run could change nothing that a digest does not show."""
    try:
        tree = ast.parse(display.shell_lines(code))
    except (SyntaxError, ValueError):
        return True  # it has not run
    except (RecursionError, MemoryError):
        return False
    bound = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    return all(_harmless(node, space, bound) for node in ast.walk(tree))


def _harmless(node: ast.AST, space: dict[str, Any], bound: set[str]) -> bool:
    if not isinstance(node, _NODES):
        return False
    if isinstance(node, ast.Attribute):
        return not node.attr.startswith("_") and _reachable(node, space)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id in _BUILTINS and node.func.id not in space and node.func.id not in bound
    if isinstance(node, ast.Name):
        if node.id not in space:
            return True  # a builtin, or a name of a comprehension, made of what is plain
        value = space[node.id]
        return isinstance(value, types.ModuleType) or _content(value) is not None
    return True


def _reachable(node: ast.Attribute, space: dict[str, Any]) -> bool:
    """Whether this is no attribute of a module, or one that may be read."""
    names = []
    inner: ast.expr = node
    while isinstance(inner, ast.Attribute):
        names.append(inner.attr)
        inner = inner.value
    value = space.get(inner.id) if isinstance(inner, ast.Name) else None
    if not isinstance(value, types.ModuleType):
        return not (isinstance(inner, ast.Name) and inner.id in _BUILTINS)
    if not isinstance(node.ctx, ast.Load) or _STATEFUL & set(names):
        return False
    chain: list[Any] = [value]
    for name in reversed(names):  # modules have others as attributes
        chain.append(getattr(chain[-1], name, None))
    return all(part.__name__.partition(".")[0] in _MODULES for part in chain if isinstance(part, types.ModuleType))


def digest(space: dict[str, Any], files: object) -> str:
    """Of all names, the working directory, the variables, the random numbers to come, and ``files``, the open ones."""
    # ``_`` is whatever was shown last, and is not kept.
    names = sorted(
        (name, _content(value) or f"at {id(value)}".encode()) for name, value in space.items() if name != "_"
    )
    variables = sorted((name, value) for name, value in os.environ.items() if name != "STATEPOOL_SANDBOX")
    numpy = sys.modules.get("numpy.random")
    numbers = (random.getstate(), repr(numpy.get_state()[2:]) if numpy else None)
    state = numpy.get_state()[1].tobytes() if numpy else b""
    whole = repr((names, os.getcwd(), variables, numbers, sys.path, files)).encode(errors="surrogateescape")
    return _hash(whole + state).hex()


def _hash(data: bytes) -> bytes:
    # The one that ``random`` has loaded already: hashlib would cost each new kernel milliseconds.
    return bytes(random._sha512(data).digest()[:16])  # type: ignore[attr-defined]


def _content(value: Any, depth: int = 0) -> bytes | None:
    """A digest of a plain value's content; None if any part of it is not plain."""
    kind = type(value)
    if kind in _SCALARS:
        return _hash(f"{kind.__name__} {value!r}".encode(errors="surrogatepass"))
    if kind is int:
        return _hash(f"int {value:x}".encode())  # in decimal a long one is refused
    if depth > 50:  # or it holds itself
        return None
    if kind in (list, tuple, bytearray):
        return _joined(kind, [_content(part, depth + 1) for part in value])
    if kind in (set, frozenset):
        parts = [_content(part, depth + 1) for part in value]
        return None if None in parts else _joined(kind, sorted(part for part in parts if part is not None))
    if kind is dict:
        return _joined(kind, [_content(part, depth + 1) for pair in value.items() for part in pair])
    return _array(value, kind)


def _joined(kind: type, parts: Sequence[bytes | None]) -> bytes | None:
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return _hash(kind.__name__.encode() + b"".join(known))


def _array(value: Any, kind: type) -> bytes | None:
    """Arrays and numbers of numpy, unless they hold objects."""
    numpy = sys.modules.get("numpy")
    if numpy is None or not (kind is numpy.ndarray or issubclass(kind, numpy.generic)) or value.dtype.hasobject:
        return None
    return _hash(repr((kind.__name__, value.dtype.str, value.shape)).encode() + value.tobytes())
