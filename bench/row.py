"""One line of a benchmark table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(slots=True)
class Row:
    """One measured claim.

    ``value`` is in ``unit``: ours divided by the peer's where the claim is a ratio (``x``). ``limit`` is the
    share of the hardware bound that our side reached, in the same run. ``value`` ``None`` means: not measured,
    ``note`` says why.
    """

    id: str
    what: str
    unit: str
    better: Literal["higher", "lower"]
    target: float
    value: float | None = None
    own: str = ""
    """Our absolute figure with its unit, for readers."""
    peer: str = ""
    peer_value: float | None = None
    peer_unit: str = ""
    limit: float | None = None
    command: str = ""
    versions: dict[str, Any] = field(default_factory=dict)
    load: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    at: str = ""
    """Date and revision of the measurement."""

    @property
    def passed(self) -> bool | None:
        """Whether the target was met; ``None`` if there is no value."""
        if self.value is None:
            return None
        return self.value >= self.target if self.better == "higher" else self.value <= self.target

    def record(self) -> dict[str, Any]:
        """As plain JSON, with ``pass``."""
        return asdict(self) | {"pass": self.passed}


def asked(name: str, only: Sequence[str]) -> bool:
    """Whether a row is among those asked for: by its id, by its id without the letter, or because all are."""
    return not only or name in only or name.rstrip("abcdefgh") in only


def merge(path: Path, room: str, machine: dict[str, Any], rows: Sequence[Row]) -> None:
    """Write the rows of one room as JSON, each with its machine; rows of other ids already in the file stay."""
    before = json.loads(path.read_text()) if path.exists() else {"machines": [], "rows": []}
    kept = {row["id"]: row | {"machine": before["machines"][row["machine"]]} for row in before["rows"]}
    kept |= {row.id: row.record() | {"machine": machine} for row in rows}
    machines: list[dict[str, Any]] = []
    for record in kept.values():
        if record["machine"] not in machines:
            machines.append(record["machine"])
        record["machine"] = machines.index(record["machine"])
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"room": room, "machines": machines, "rows": list(kept.values())}
    path.write_text(json.dumps(content, indent=1) + "\n")
