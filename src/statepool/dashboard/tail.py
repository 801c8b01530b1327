"""Reading files of JSON lines while others append to them: every look parses what is new, and nothing twice."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

__all__ = ["Tail"]


class Tail:
    """One growing file. A file that was replaced or cut is read from its start.

    Args:
        path: may not exist yet.
        only: a line must have one of these among its first hundred bytes to be parsed; without any, all are.
    """

    def __init__(self, path: Path, *only: bytes) -> None:
        self.path = path
        self._only = only
        self._inode = -1
        self._offset = 0

    def look(self) -> tuple[bool, list[Any]]:
        """Whether the file began anew, and the whole lines that came since the last look.

        Raises:
            FileNotFoundError: it is not there yet.
            ValueError: a line is no JSON.
        """
        with self.path.open("rb") as file:
            about = os.fstat(file.fileno())
            anew = about.st_ino != self._inode or about.st_size < self._offset
            if anew:
                self._inode, self._offset = about.st_ino, 0
            file.seek(self._offset)
            found = []
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                if line.strip() and (not self._only or any(mark in line[:100] for mark in self._only)):
                    found.append(json.loads(line))
        return anew, found
