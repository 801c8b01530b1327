"""The pool as an engine sees it: leading blocks of a chain, from whichever node has them, checked before first use.

Nothing here raises because a node is slow, gone or wrong: the blocks it would have given are missing then, and are
computed. Which node to ask is decided per chain, so that replicas of one chain lie on the same nodes.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from operator import methodcaller
from typing import TypeVar

from statepool.core.errors import Corruption, InvalidConfig
from statepool.kv.pool.checksum import Row
from statepool.kv.pool.lanes import Lanes
from statepool.kv.pool.link import BATCH

__all__ = ["Pool", "PoolCounts"]

log = logging.getLogger("statepool.pool")

R = TypeVar("R")

_HOT = 1024
"""Chains that a client remembers as read very often."""


@dataclass(slots=True)
class PoolCounts:
    """What one client did since it started."""

    loaded: int = 0
    """Blocks taken over from the pool."""
    saved: int = 0
    """Blocks given to the pool that it did not have."""
    corrupt: int = 0
    """Blocks that were not what their checksum says; dropped, never used."""
    failures: int = 0
    """Questions that a node did not answer in time or at all."""


class Pool:
    """Leading blocks of chains over several nodes. Not thread-safe.

    Args:
        addresses: the nodes, this machine's own first.
        block_bytes: size of a block.
        replicas: how many nodes get each block; more than there are means all.
        timeout: seconds without progress after which a node counts as gone.
        connections: to each node; above 1, blocks travel in as many parts at once.

    Raises:
        InvalidConfig: no address, or a wrong one, or ``replicas`` or ``connections`` below 1.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        block_bytes: int,
        replicas: int = 1,
        timeout: float = 0.5,
        connections: int = 1,
    ) -> None:
        if not addresses:
            raise InvalidConfig("pool needs the address of at least one node", param="pool")
        if replicas < 1:
            raise InvalidConfig(f"pool_replicas must be at least 1, got {replicas}", param="pool_replicas")
        if connections < 1:
            raise InvalidConfig(f"pool_connections must be at least 1, got {connections}", param="pool_connections")
        self.links = [Lanes(address, block_bytes, timeout, connections) for address in addresses]
        self.replicas = min(replicas, len(self.links))
        self.counts = PoolCounts()
        self._copies: OrderedDict[bytes, int] = OrderedDict()
        """How many nodes have a chain that is read very often, as far as this client knows."""
        self._turn = 0

    def check(self) -> None:
        """Meet every node once, so that a wrong setting is told at the start.

        Raises:
            InvalidConfig: a node refuses this client.
        """
        for link in self.links:
            try:
                link.match([])
            except (OSError, Corruption) as error:
                self._failed(link, error)

    # Keys may be the later part of a chain; ``chain`` is the key of its first block then, which tells the nodes.

    def match(self, keys: Sequence[bytes], chain: bytes | None = None) -> int:
        """How many leading blocks some one node has."""
        found = 0
        for link in self._order(keys, chain):
            if found == len(keys):
                break
            found = max(found, self._try(link, methodcaller("match", keys), 0))
        return found

    def load(self, keys: Sequence[bytes], rows: Sequence[Row], chain: bytes | None = None) -> int:
        """Fill ``rows`` with leading blocks of ``keys``; how many. Rows beyond that may hold anything."""
        done = 0
        first = chain or (keys[0] if keys else b"")
        nodes = self._order(keys, chain)
        for link in self._in_turn(first, nodes):
            if done == len(keys):
                break
            good, hot = self._load_from(link, keys[done:], rows[done:])
            if hot and good:
                self._spread(first, nodes, keys[done : done + good], rows[done : done + good])
            elif not (good or done):
                self._copies.pop(first, None)  # the copy is gone
            done += good
        self.counts.loaded += done
        return done

    def save(self, keys: Sequence[bytes], rows: Sequence[Row], chain: bytes | None = None) -> int:
        """Give blocks to the pool; how many it did not have."""
        chosen = [link for link in self._order(keys, chain) if not link.resting]
        return sum(self._save_to(link, keys, rows) for link in chosen[: self.replicas])

    def close(self) -> None:
        """End all connections."""
        for link in self.links:
            link.close()

    def _load_from(self, link: Lanes, keys: Sequence[bytes], rows: Sequence[Row]) -> tuple[int, bool]:
        done, any_hot = 0, False
        while done < len(keys):
            some, into = keys[done : done + BATCH], rows[done : done + BATCH]
            good, bad, hot = self._try(link, methodcaller("load", some, into), (0, 0, False))
            done, any_hot = done + good, any_hot or hot
            self.counts.corrupt += bad
            if good < len(some):
                break
        return done, any_hot

    def _save_to(self, link: Lanes, keys: Sequence[bytes], rows: Sequence[Row]) -> int:
        saved = 0
        for at in range(0, len(keys), BATCH):
            some, from_ = keys[at : at + BATCH], rows[at : at + BATCH]
            saved += self._try(link, methodcaller("save", some, from_), 0)
        self.counts.saved += saved
        return saved

    def _spread(self, first: bytes, nodes: Sequence[Lanes], keys: Sequence[bytes], rows: Sequence[Row]) -> None:
        """Give what is read very often to one more of ``nodes``, and read it from all of them in turn."""
        copies = self._copies.pop(first, self.replicas)
        if copies < len(nodes):
            self._save_to(nodes[copies], keys, rows)
            copies += 1
        self._copies[first] = copies
        if len(self._copies) > _HOT:
            self._copies.popitem(last=False)

    def _in_turn(self, first: bytes, nodes: Sequence[Lanes]) -> Sequence[Lanes]:
        """The nodes for a reader: those that have a chain which is read very often change places."""
        copies = self._copies.get(first, 0)
        if not copies:
            return nodes
        self._turn += 1
        at = self._turn % copies
        return [*nodes[at:copies], *nodes[:at], *nodes[copies:]]

    def _order(self, keys: Sequence[bytes], chain: bytes | None) -> list[Lanes]:
        """All nodes, those that should have this chain first (rendezvous hashing on its first block)."""
        if len(self.links) == 1 or not keys:
            return self.links
        first = keys[0] if chain is None else chain
        return sorted(self.links, key=lambda link: blake2b(first + link.address.encode(), digest_size=8).digest())

    def _try(self, link: Lanes, work: Callable[[Lanes], R], otherwise: R) -> R:
        if link.resting:
            return otherwise
        try:
            return work(link)
        except (OSError, Corruption, InvalidConfig) as error:  # the last: another node has come to this address
            self._failed(link, error)
            return otherwise

    def _failed(self, link: Lanes, error: Exception) -> None:
        self.counts.failures += 1
        log.warning("pool node %s does not answer (%s); its blocks count as missing", link.address, error)
        link.rest()
