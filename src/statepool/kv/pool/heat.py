"""Which chains are read so often that one more node should have them (Mooncake's hot-spot replication)."""

from __future__ import annotations

from collections import OrderedDict

__all__ = ["Heat"]

_CHAINS = 4096


class Heat:
    """Counts reads per chain; a count halves every ``half_s`` seconds that nobody reads.

    Args:
        enough: more reads call for one more copy; they are counted anew after it.
        half_s: see above.
    """

    def __init__(self, enough: float = 7.0, half_s: float = 10.0) -> None:
        self._enough, self._half_s = enough, half_s
        self._reads: OrderedDict[bytes, tuple[float, float]] = OrderedDict()  # the longest unread first

    def read(self, chain: bytes, now: float) -> bool:
        """Note that ``chain`` is read at ``now``; whether it calls for one more copy."""
        count, last = self._reads.pop(chain, (0.0, now))
        count = count * 0.5 ** ((now - last) / self._half_s) + 1.0
        if count > self._enough:
            return True
        self._reads[chain] = (count, now)
        if len(self._reads) > _CHAINS:
            self._reads.popitem(last=False)
        return False
