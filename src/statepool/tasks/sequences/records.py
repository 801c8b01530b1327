"""Records: what a search writes, one JSON object a line; each is a certificate that anybody can check."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from statepool import __version__
from statepool.core.errors import StatepoolError
from statepool.tasks.sequences import checker
from statepool.tasks.sequences.codes import Code, from_hex
from statepool.tasks.sequences.errors import BadCertificate, InvalidSequence
from statepool.tasks.sequences.objectives import Objective, Score, make
from statepool.tasks.sequences.symmetry import orbit_key

__all__ = ["Record", "certify", "params_of", "read_records", "verify"]


@dataclass(frozen=True)
class Record:
    """Codes, what they are worth, and where they come from."""

    problem: str
    codes: tuple[Code, ...]
    value: str
    """``p/q``, a whole number, or a float where the objective has no exact value."""
    params: dict[str, Any]
    orbit_key: str
    filter: tuple[int, ...] | None = None
    seed: int | None = None
    tool: str = f"statepool {__version__}"

    @property
    def objective(self) -> Objective:
        """The objective with its parameters."""
        found: Objective = make(self.problem, self.params)
        return found

    @property
    def number(self) -> float:
        """The value as a float."""
        top, _, bottom = self.value.partition("/")
        return int(top) / int(bottom) if bottom else float(top)

    def json(self) -> str:
        """One line."""
        binary = self.codes[0].binary
        content = {
            "format": checker.FORMAT,
            "problem": self.problem,
            "n": len(self.codes[0]),
            "alphabet": self.codes[0].alphabet,
            "codes": [code.hex if binary else list(code.phases) for code in self.codes],
            "runs": [code.runs for code in self.codes] if binary else None,
            "value": self.value,
            "params": self.params,
            "filter": None if self.filter is None else [str(tap) for tap in self.filter],
            "orbit_key": self.orbit_key,
            "seed": self.seed,
            "tool": self.tool,
        }
        return json.dumps({key: value for key, value in content.items() if value is not None})

    @staticmethod
    def parse(text: str) -> Record:
        """Read one line; what it claims is not checked here, see :func:`verify`.

        Raises:
            BadCertificate: The text is no record.
        """
        try:
            content = json.loads(text)
            n, alphabet = content["n"], content["alphabet"]
            if type(n) is not int or type(alphabet) is not int:
                raise BadCertificate("certificate: n and alphabet must be whole numbers")
            codes = tuple(from_hex(c, n) if alphabet == 2 else Code(tuple(c), alphabet) for c in content["codes"])
            filter_ = content.get("filter")
            return Record(
                content["problem"],
                codes,
                str(content["value"]),
                dict(content["params"]),
                content["orbit_key"],
                None if filter_ is None else tuple(map(int, filter_)),
                content.get("seed"),
                content.get("tool", ""),
            )
        except InvalidSequence as error:
            raise BadCertificate(f"certificate: {error.message}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadCertificate(f"certificate: cannot be read ({type(error).__name__}: {error})") from error


def certify(objective: Objective, codes: Sequence[Code], seed: int | None = None) -> tuple[Record, Score]:
    """Score codes exactly and write down what was found.

    Raises:
        InvalidSequence: The codes do not fit the objective.
    """
    score = objective.score(codes)
    key = orbit_key(objective, codes)
    return Record(objective.name, tuple(codes), score.text, params_of(objective), key, score.filter, seed), score


def params_of(objective: Objective) -> dict[str, Any]:
    """Parameters as records hold them: defaults filled in, what only guides a search left out."""
    kept = {item.name: getattr(objective, item.name) for item in dataclasses.fields(objective)}  # type: ignore[arg-type]
    return {name: value for name, value in kept.items() if value is not None and name != "ridge"}


def verify(record: Record) -> None:
    """Check value, filter and orbit key.

    Raises:
        BadCertificate: One of them is not what the record claims.
    """
    reason = checker.check(json.loads(record.json()))
    if reason is not None:
        raise BadCertificate(f"certificate: {reason}")
    try:
        key = orbit_key(record.objective, record.codes)
    except StatepoolError as error:
        raise BadCertificate(f"certificate: {error.message}") from error
    if key != record.orbit_key:
        raise BadCertificate(f"certificate: orbit_key is {record.orbit_key}, the codes have {key}")


def read_records(path: Path) -> Iterator[Record]:
    """All records of a file, in order.

    Raises:
        BadCertificate: A line is no record; the sentence names it.
    """
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.strip():
            try:
                yield Record.parse(line)
            except BadCertificate as error:
                raise BadCertificate(f"{path}:{number}: {error.message}") from error
