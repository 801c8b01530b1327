"""One bug: an edit, and the test that must notice."""

from __future__ import annotations

from dataclasses import dataclass

NATIVE, ROOM, NET = "src/statepool/native/store", "src/statepool/store", "src/statepool/store/net"


@dataclass(frozen=True)
class Mutant:
    """One bug; ``test`` is what pytest is given, files relative to tests/store."""

    name: str
    file: str
    old: str
    new: str
    test: str
    more: tuple[tuple[str, str], ...] = ()
    """Further edits in the same file."""

    @property
    def native(self) -> bool:
        """Whether the module must be compiled again."""
        return self.file.endswith((".cpp", ".h"))

    @property
    def edits(self) -> tuple[tuple[str, str], ...]:
        return ((self.old, self.new), *self.more)
