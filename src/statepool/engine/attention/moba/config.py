"""Settings of block attention."""

from __future__ import annotations

from dataclasses import dataclass

from statepool.core.errors import InvalidConfig


@dataclass(frozen=True, slots=True)
class MobaConfig:
    """Which blocks a query reads (MoBA 2.2).

    Args:
        block: tokens per block.
        topk: blocks a query reads, its own counted; contexts of up to ``block * topk`` tokens are read whole.

    Raises:
        InvalidConfig: a value is below 1.
    """

    block: int = 512
    topk: int = 3

    def __post_init__(self) -> None:
        for name in ("block", "topk"):
            if getattr(self, name) < 1:
                raise InvalidConfig(f"{name} must be at least 1, got {getattr(self, name)}", param=name)
