"""What a folder is: the store of a primary, or a mirror's copy of one. Kept beside the store's own files."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import msgspec

from statepool.core.errors import StoreCorrupt

_NAME = "node"


class Node(msgspec.Struct):
    """The name of a machine's copy, its role, and the highest term it knows of."""

    name: str = msgspec.field(default_factory=lambda: secrets.token_hex(8))
    mirror: bool = False
    """It follows another one; a promotion ends that."""
    term: int = 0
    """The reign it belongs to: what comes from a lower one is refused."""
    fenced: int = 0
    """A higher term it heard of when it was a primary: it must not serve before it is made a mirror."""


def read_node(folder: Path) -> Node | None:
    """The record of a folder; None if it has none.

    Raises:
        StoreCorrupt: it cannot be read.
    """
    try:
        return msgspec.json.decode((folder / _NAME).read_bytes(), type=Node)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StoreCorrupt(f"{folder / _NAME}: {error}; restore it from a copy") from error


def write_node(folder: Path, node: Node) -> None:
    """Replace the record, durable when it returns."""
    folder.mkdir(parents=True, exist_ok=True)
    write_durably(folder / _NAME, msgspec.json.encode(node))


def write_durably(path: Path, data: bytes) -> None:
    """Replace a small file as a whole."""
    unfinished = path.with_name(path.name + ".new")
    with unfinished.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
