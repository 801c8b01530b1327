"""Who may acknowledge and who may take over: primary, mirror and witness as state machines.

Nothing here does input or output: clocks come in as numbers, messages go in and out as values, and what must be on disk
before an answer leaves is said by the caller's contract. The daemon and the simulator drive the same objects.

A *term* is one primary's reign; terms only grow, and a promotion starts the next one. The upper half of every epoch in
the log is its term. What a machine of a lower term sends is refused.
"""

from __future__ import annotations

import msgspec

TERM_SHIFT = 32
DRIFT = 0.1
"""Clocks of two machines may run apart by a tenth; the holder of a lease counts it shorter by that much."""


class Position(msgspec.Struct, frozen=True, array_like=True):
    """The last frame of a log: its epoch, its last operation and its checksum. All 0: an empty log."""

    epoch: int = 0
    lsn: int = 0
    crc: int = 0


class Vote(msgspec.Struct, frozen=True, array_like=True):
    """What a witness has promised: who reigns, and which mirror has everything that was acknowledged."""

    term: int = 0
    holder: str = ""
    mirror: str = ""
    number: tuple[int, int] = (0, 0)
    """Of the last renewal: an older one that comes late changes nothing."""


class Renewal(msgspec.Struct, frozen=True, array_like=True):
    """A primary asks to go on; ``mirror`` empty: leave the one that is recorded."""

    node: str
    term: int
    mirror: str
    number: tuple[int, int]


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """Of a witness: the vote as it is now, and why not if it is no."""

    granted: bool
    vote: Vote
    number: tuple[int, int] = (0, 0)
    reason: str = ""


class Witness:
    """The third voter: it grants one term to one node at a time. Write ``vote`` to disk before an answer leaves."""

    def __init__(self, vote: Vote, lease: float, now: float) -> None:
        self.vote, self.lease = vote, lease
        self._until = now + lease if vote.holder else now  # a lease may run that was granted before a restart

    def renew(self, ask: Renewal, now: float) -> Answer:
        """A primary's renewal; grants it a lease from now on."""
        vote = self.vote
        ours = (ask.term, ask.node) == (vote.term, vote.holder)
        if ask.term < vote.term or (ask.term == vote.term and vote.holder not in ("", ask.node)):
            return self._no(ask.number, f"term {vote.term} belongs to another node")
        if not ours and now < self._until:
            return self._no(ask.number, "the lease of another node has not ended")
        if ours and ask.number < vote.number:
            return self._no(ask.number, "a later renewal came first")
        mirror = ask.mirror or (vote.mirror if ours else "")
        self.vote = Vote(ask.term, ask.node, mirror, ask.number)
        self._until = now + self.lease
        return Answer(True, self.vote, ask.number)

    def promote(self, node: str, now: float) -> Answer:
        """A mirror asks to reign: granted once the lease has ended, and only to the one that has everything."""
        if self.vote.holder == node:  # it has been granted, and the answer was lost
            return Answer(True, self.vote)
        if self.vote.mirror != node:
            return self._no((0, 0), "this mirror may lack acknowledged operations")
        if now < self._until:
            return self._no((0, 0), "the lease of the primary has not ended")
        self.vote = Vote(self.vote.term + 1, node)
        self._until = now + self.lease
        return Answer(True, self.vote)

    def _no(self, number: tuple[int, int], reason: str) -> Answer:
        return Answer(False, self.vote, number, reason)


class Primary:
    """What the present primary knows of its right to acknowledge and of its mirror.

    ``lease`` is None without a witness. ``floor`` is the last operation that was durable when it opened: what earlier
    processes acknowledged lies below, so a new mirror must have reached it.
    """

    def __init__(self, node: str, term: int, epoch: int, floor: int, lease: float | None, patience: float) -> None:
        self.node, self.term, self.lease, self.patience = node, term, lease, patience
        self.mirror = self.wanted = ""
        self.mirrored = 0
        """Operations up to here are durable on the mirror that would take over."""
        self.fenced = 0
        """A higher term that exists, if one was heard of: nothing is acknowledged any more."""
        self._floor, self._epoch, self._count = floor, epoch, 0
        self._sent: dict[tuple[int, int], float] = {}
        self._until = float("-inf")
        self._pulled_at = float("-inf")

    # ---- the lease ------------------------------------------------------------------------------------------------

    def renewal(self, now: float) -> Renewal:
        """The next renewal to send to the witness."""
        self._count += 1
        number = (self._epoch, self._count)
        self._sent = {n: at for n, at in self._sent.items() if self.lease is not None and now - at < self.lease}
        self._sent[number] = now
        return Renewal(self.node, self.term, self.wanted if self.wanted != self.mirror else "", number)

    def answered(self, answer: Answer) -> None:
        """An answer of the witness. The lease counts from when its renewal was sent."""
        if answer.vote.term > self.term:
            self.heard(answer.vote.term)
        sent = self._sent.pop(answer.number, None)
        if not answer.granted or sent is None or self.lease is None:
            return
        self._until = max(self._until, sent + self.lease * (1 - DRIFT))
        if not self._sent or max(self._sent) < answer.number:  # a later one may have changed the mirror since
            self.mirror = answer.vote.mirror
            self.wanted = self.wanted or self.mirror

    def may_acknowledge(self, now: float) -> bool:
        """Whether nobody else can have been granted the reign."""
        return not self.fenced and (self.lease is None or now < self._until)

    def heard(self, term: int) -> None:
        """Somebody knows this term."""
        if term > self.term:
            self.fenced = max(self.fenced, term)

    # ---- the mirror -----------------------------------------------------------------------------------------------

    def pulled(self, node: str, position: Position, now: float) -> None:
        """A mirror says that it has everything up to a frame which is in our log."""
        if node == self.mirror == self.wanted:
            self._pulled_at = now
            self.mirrored = max(self.mirrored, position.lsn)
        elif node == self.wanted:
            self._pulled_at = now  # the witness has not confirmed it yet
        elif self.mirror_lost(now) and position.lsn >= max(self._floor, self.mirrored):
            # From here on the old mirror's word counts no more, and the new one's not before the witness knows it.
            self.wanted, self._pulled_at = node, now
            if self.lease is None:
                self.mirror = node

    def mirror_lost(self, now: float) -> bool:
        """Whether no mirror has asked for more within the patience."""
        return now - self._pulled_at > self.patience


class Mirror:
    """A follower: what it has, and which answers it may take. Write ``term`` to disk before the next pull leaves."""

    def __init__(self, node: str, term: int, position: Position) -> None:
        self.node, self.term, self.position = node, term, position

    def accepts(self, term: int) -> bool:
        """Whether an answer of a primary of this term counts; takes over a higher one."""
        if term < self.term:
            return False
        self.term = term
        return True

    def follows(self, epoch: int, first_lsn: int, prev_crc: int) -> bool:
        """Whether a frame is the next one."""
        last = self.position
        return epoch >= last.epoch and first_lsn == last.lsn + 1 and (prev_crc == last.crc or last.lsn == 0)
