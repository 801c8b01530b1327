"""The connections to one pool node, over which the blocks of one question travel in parts at once.

One connection is one core's work on either side: copying, checking, and what the kernel does for a socket. A link or a
memory that is faster than a core wants several (Mooncake's slices over several NICs, section 4.3 of 2407.00079).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from statepool.kv.pool.checksum import Row
from statepool.kv.pool.link import NodeLink

__all__ = ["Lanes"]

R = TypeVar("R")


class Lanes:
    """One or several connections of a client, each beyond the first with a thread of its own.

    Args:
        address: of the node.
        block_bytes: size of this client's blocks.
        timeout: seconds without any progress after which the node counts as gone.
        connections: how many.

    Raises:
        InvalidConfig: not an address.
    """

    def __init__(self, address: str, block_bytes: int, timeout: float, connections: int) -> None:
        self.address = address
        self.lanes = [NodeLink(address, block_bytes, timeout) for _ in range(connections)]
        self._threads = ThreadPoolExecutor(max(connections - 1, 1), "kv-lane")  # started when first needed

    def match(self, keys: Sequence[bytes]) -> int:
        """See ``NodeLink.match``."""
        return self.lanes[0].match(keys)

    def load(self, keys: Sequence[bytes], rows: Sequence[Row]) -> tuple[int, int, bool]:
        """See ``NodeLink.load``."""
        parts = self._parts(len(keys))
        came = self._together(parts, lambda lane, part: lane.load(keys[part], rows[part]))
        good = 0
        for part, (count, _, _) in zip(parts, came, strict=True):
            if good == part.start:
                good += count
        return good, sum(wrong for _, wrong, _ in came), any(hot for _, _, hot in came)

    def save(self, keys: Sequence[bytes], rows: Sequence[Row]) -> int:
        """See ``NodeLink.save``."""
        return sum(self._together(self._parts(len(keys)), lambda lane, part: lane.save(keys[part], rows[part])))

    @property
    def resting(self) -> bool:
        """See ``NodeLink.resting``."""
        return self.lanes[0].resting

    def rest(self) -> None:
        """See ``NodeLink.rest``."""
        for lane in self.lanes:
            lane.rest()

    def close(self) -> None:
        """See ``NodeLink.close``."""
        self._threads.shutdown()
        for lane in self.lanes:
            lane.close()

    def _parts(self, count: int) -> list[slice]:
        share = max(-(-count // len(self.lanes)), 1)
        return [slice(at, min(at + share, count)) for at in range(0, count, share)]

    def _together(self, parts: Sequence[slice], work: Callable[[NodeLink, slice], R]) -> list[R]:
        """``work`` on every part by a lane of its own. None is still at work when this returns or raises."""
        others = [self._threads.submit(work, lane, part) for lane, part in zip(self.lanes[1:], parts[1:], strict=False)]
        try:
            mine = [work(self.lanes[0], part) for part in parts[:1]]
        finally:
            wait(others)
        return mine + [other.result() for other in others]
