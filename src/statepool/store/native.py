"""The compiled core and the numbers it shares with Python."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Literal

from statepool.core.errors import InvalidRequest

try:
    from statepool.native import _store  # type: ignore[attr-defined]  # compiled: no source for mypy to find
except ImportError as error:  # pragma: no cover - a machine without a compiler
    raise ImportError(
        f"statepool.store needs its native module ({error}); run `make native` with a C++ compiler"
    ) from error

core: Any = _store

Level = Literal["process", "power", "mirror"]
"""What a write has survived when it returns: the death of the process, of the machine's power, of the machine."""

_LEVELS = {None: -1, "process": 0, "power": 1, "mirror": 2}


class Kind(IntEnum):
    """Structures of the native core (operation.h)."""

    DICT = 1
    SORTED_DICT = 2
    SKIP_LIST = 3
    BST = 4
    MV_BST = 5
    MV_SORTED_DICT = 6
    STACK = 7
    QUEUE = 8


class Verb(IntEnum):
    """Operations of the native core (operation.h)."""

    CREATE = 1
    DROP = 2
    PUT = 3
    ERASE = 4
    PUSH = 5
    POP = 6
    ENQUEUE = 7
    TAKE = 8
    ACKNOWLEDGE = 9
    GIVE_BACK = 10
    EXTEND = 11
    LIMIT_ATTEMPTS = 12
    TAKE_DEAD = 13


def level_number(level: str | None) -> int:
    """The native number of a durability level; None means the store's own.

    Raises:
        InvalidRequest: an unknown level.
    """
    if level not in _LEVELS:
        raise InvalidRequest(f"durability: '{level}' is none of process, power, mirror", param="durability")
    return _LEVELS[level]
