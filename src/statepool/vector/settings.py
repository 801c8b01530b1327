"""What an index is made of: the one object that its parts, its file and its log share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from statepool.core.errors import InvalidRequest

from .check import one_of, within
from .native import DTYPES, METRICS, Dtype, Metric

__all__ = ["WORDS", "ColumnType", "Settings"]

ColumnType = Literal["str", "i64", "f64"]
"""What a column holds: text, integers or numbers."""

WORDS = ("and", "or", "not")
"""Names that filters use themselves."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of an index. ``Index`` and ``LiveIndex`` say what they mean.

    Raises:
        InvalidRequest: a value out of its range.
    """

    dim: int
    metric: Metric = "cos"
    dtype: Dtype = "f32"
    R: int = 32
    build_window: int = 150
    alpha: float = 1.0
    seed: int = 0
    columns: Mapping[str, ColumnType] = field(default_factory=dict)
    change_alpha: float = 1.2
    capacity: int = 1_000_000
    text_ids: bool = False

    def __post_init__(self) -> None:
        one_of("metric", self.metric, METRICS)
        one_of("dtype", self.dtype, DTYPES)
        within("dim", self.dim, 1, 65536)
        within("R", self.R, 16, 128)
        within("build_window", self.build_window, self.R, 10_000)
        within("capacity", self.capacity, 1, 2**31 - 2)
        if self.R % 16:
            raise InvalidRequest(f"R: {self.R} is no multiple of 16", param="R")
        for name in ("alpha", "change_alpha"):
            if not 1.0 <= getattr(self, name) <= 4.0:
                raise InvalidRequest(f"{name}: {getattr(self, name)} is outside 1 to 4", param=name)
        for name, kind in self.columns.items():
            if not isinstance(name, str) or not name or name in WORDS:
                raise InvalidRequest(f"columns: {name!r} is no name for a column; filters use it", param="columns")
            one_of(f"columns: {name}", kind, dict.fromkeys(get_args(ColumnType), 0))

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it; ``Settings(**plain)`` is the same again."""
        return asdict(self) | {"columns": dict(self.columns)}
