"""Who may read or write which slot of a node's memory, and until when: bookkeeping without bytes, clock or threads.

A block is put in two phases: ``begin`` gives the writer slots of its own under a lease, ``finish`` makes them readable.
A writer of a few blocks may have the first phase behind it: it has slots ``ahead``, fills them, and ``put`` says with
what. A reader's lease keeps its blocks where they are. A lease ends by ``release``, ``finish`` or ``put``, with its
owner, or at its deadline; whoever comes with an ended one is told so, and nothing that it brings is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from statepool.kv.eviction import Eviction

__all__ = ["Lease", "SlotTable"]

_AHEAD = 4
"""Most slots that one writer has ahead: of more blocks it is worth asking first which are known."""


@dataclass(slots=True)
class _Block:
    slot: int
    checksum: int = 0
    ready: bool = False
    holds: int = 0


@dataclass(frozen=True, slots=True)
class Lease:
    """A right to slots until ``deadline``, seconds on the caller's clock.

    Attributes:
        id: its number; never used twice.
        owner: who has it.
        writes: whether the slots are to be filled, or read.
        keys, slots: the blocks, and where each of them is; slots without keys are ahead of their blocks.
        checksums: of the blocks' bytes, for a reader.
    """

    id: int
    owner: int
    writes: bool
    deadline: float
    keys: tuple[bytes, ...]
    slots: tuple[int, ...]
    checksums: tuple[int, ...] = ()


@dataclass(slots=True)
class SlotTable:
    """The blocks of one node.

    Args:
        slots: how many blocks fit.
        order: which block goes first when room is needed.
        lease_s: how long a lease holds.
        most_ahead: how many slots may be with writers that have not said yet what they fill them with.
    """

    slots: int
    order: Eviction[bytes]
    lease_s: float = 10.0
    most_ahead: int = 0
    evicted: int = 0
    """Blocks given up for others."""
    expired: int = 0
    """Leases that ended at their deadline."""
    _free: list[int] = field(default_factory=list)
    _blocks: dict[bytes, _Block] = field(default_factory=dict)
    _leases: dict[int, Lease] = field(default_factory=dict)
    _held: set[bytes] = field(default_factory=set)
    _ahead: dict[int, Lease] = field(default_factory=dict)  # by owner
    _last: int = 0

    def __post_init__(self) -> None:
        self._free = list(range(self.slots - 1, -1, -1))

    def __len__(self) -> int:
        """Readable blocks."""
        return sum(block.ready for block in self._blocks.values())

    def __contains__(self, key: bytes) -> bool:
        block = self._blocks.get(key)
        return block is not None and block.ready

    @property
    def held(self) -> int:
        """Blocks that somebody reads or writes."""
        return len(self._held)

    def known(self, key: bytes) -> bool:
        """Whether a block is readable or being written."""
        return key in self._blocks

    def match(self, keys: Sequence[bytes]) -> int:
        """How many leading blocks of a chain are readable."""
        return next((i for i, key in enumerate(keys) if key not in self), len(keys))

    def read(self, owner: int, keys: Sequence[bytes], now: float) -> Lease:
        """Hold the readable leading blocks of a chain for a reader."""
        chain = keys[: self.match(keys)]
        self.order.used(chain, now)
        blocks = [self._blocks[key] for key in chain]
        for key, block in zip(chain, blocks, strict=True):
            block.holds += 1
            self._held.add(key)
        slots, sums = tuple(block.slot for block in blocks), tuple(block.checksum for block in blocks)
        return self._lend(owner, False, now, tuple(chain), slots, sums)

    def begin(self, owner: int, keys: Sequence[bytes], now: float) -> Lease:
        """Slots for those of ``keys`` that nobody has written or is writing; fewer, from the first on, if room ends.

        None of the chain's own blocks goes for another of them.
        """
        taken: list[bytes] = []
        slots: list[int] = []
        chain = self._held.union(keys)
        for key in keys:
            if key in self._blocks:
                continue
            slot = self._room(chain)
            if slot is None:
                break
            self._blocks[key] = _Block(slot, holds=1)
            self._held.add(key)
            taken.append(key)
            slots.append(slot)
        return self._lend(owner, True, now, tuple(taken), tuple(slots))

    def finish(self, lease: int, checksums: Sequence[int], now: float) -> tuple[bytes, ...]:
        """Make what a writer filled readable; the keys of the blocks, none if the lease has ended."""
        found = self._leases.get(lease)
        if found is None or not (found.writes and found.keys) or len(checksums) != len(found.keys):
            return ()
        del self._leases[lease]
        for key, checksum in zip(found.keys, checksums, strict=True):
            block = self._blocks[key]
            block.checksum, block.ready = checksum, True
            self._let_go(key)
        self.order.used(found.keys, now)
        return found.keys

    def ahead(self, owner: int, now: float, chain: Sequence[bytes] = ()) -> Lease:
        """Slots for blocks that ``owner`` will name when it has written them, instead of those it had before.

        There may be none: room ends, or enough slots are given ahead already. None of ``chain`` goes for them.
        """
        if owner in self._ahead:
            self.release(self._ahead[owner].id)
        left = self.most_ahead - sum(len(lease.slots) for lease in self._ahead.values())
        kept = self._held.union(chain)
        slots: list[int] = []
        while len(slots) < min(_AHEAD, left) and (slot := self._room(kept)) is not None:
            slots.append(slot)
        lease = self._lend(owner, True, now, (), tuple(slots))
        if slots:
            self._leases[lease.id] = self._ahead[owner] = lease
        return lease

    def put(self, lease: int, keys: Sequence[bytes], checksums: Sequence[int], now: float) -> tuple[bytes, ...] | None:
        """Make readable what a writer filled the first slots of an ``ahead`` lease with, and free the others.

        Returns:
            Those of ``keys`` that were not here yet; None if the lease has ended.
        """
        found = self._leases.get(lease)
        if found is None or found.keys or not len(keys) == len(checksums) <= len(found.slots):
            return None
        del self._leases[lease], self._ahead[found.owner]
        taken = []
        for i, slot in enumerate(found.slots):
            if i < len(keys) and keys[i] not in self._blocks:
                self._blocks[keys[i]] = _Block(slot, checksums[i], ready=True)
                taken.append(keys[i])
            else:
                self._free.append(slot)
        self.order.used(taken, now)
        return tuple(taken)

    def release(self, lease: int) -> bool:
        """End a lease; what was being written under it is dropped. False if it has ended already."""
        found = self._leases.pop(lease, None)
        if found is None:
            return False
        if not found.keys:
            del self._ahead[found.owner]
            self._free += found.slots
        for key in found.keys:
            if found.writes:
                self._free.append(self._blocks.pop(key).slot)
                self._held.discard(key)
            else:
                self._let_go(key)
        return True

    def leave(self, owner: int) -> None:
        """End every lease of an owner that is gone."""
        for lease in [lease.id for lease in self._leases.values() if lease.owner == owner]:
            self.release(lease)

    def expire(self, now: float) -> int:
        """End every lease whose deadline has passed; how many of them had blocks."""
        late = [lease for lease in self._leases.values() if lease.deadline <= now]
        for lease in late:
            self.release(lease.id)
        with_blocks = sum(bool(lease.keys) for lease in late)
        self.expired += with_blocks
        return with_blocks

    def drop(self, key: bytes, checksum: int | None = None) -> bool:
        """Give up a readable block, because its bytes are bad; only the one with ``checksum``, if that is given.

        A block that somebody still reads leaves the index at once and its slot when the last lease ends.
        """
        block = self._blocks.get(key)
        if block is None or not block.ready or (checksum is not None and block.checksum != checksum):
            return False
        self.order.forget(key)
        block.ready = False
        if block.holds == 0:
            self._forget(key)
        return True

    def check(self) -> None:
        """Raise AssertionError if the books do not balance; for tests."""
        slots = [block.slot for block in self._blocks.values()]
        slots += [slot for lease in self._ahead.values() for slot in lease.slots]
        assert sorted([*slots, *self._free]) == list(range(self.slots)), "a slot leaked or is used twice"
        holds = dict.fromkeys(self._blocks, 0)
        for lease in self._leases.values():
            for key in lease.keys:
                holds[key] += 1
        assert holds == {key: block.holds for key, block in self._blocks.items()}, "a hold without a lease"
        assert self._held == {key for key, count in holds.items() if count}, "held keys and holds differ"

    def _lend(
        self,
        owner: int,
        writes: bool,
        now: float,
        keys: tuple[bytes, ...],
        slots: tuple[int, ...],
        sums: tuple[int, ...] = (),
    ) -> Lease:
        self._last += 1
        lease = Lease(self._last, owner, writes, now + self.lease_s, keys, slots, sums)
        if keys:
            self._leases[lease.id] = lease
        return lease

    def _let_go(self, key: bytes) -> None:
        block = self._blocks[key]
        block.holds -= 1
        if block.holds == 0:
            self._held.discard(key)
            if not block.ready:
                self._forget(key)

    def _forget(self, key: bytes) -> None:
        self._free.append(self._blocks.pop(key).slot)

    def _room(self, kept: set[bytes]) -> int | None:
        if not self._free:
            victim = self.order.victim(kept)
            if victim is None:
                return None
            self._forget(victim)
            self.evicted += 1
        return self._free.pop()
