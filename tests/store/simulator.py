"""A primary, mirrors, a witness and clients over a simulated network, disks and clocks: one seed, one history.

The machines run the state machines that the daemon runs (``statepool.store.net.roles``); everything around them, from
the delay of a message to the instant of a power cut, is drawn from the seed. Messages are lost, doubled, overtaken and
held up; machines lose power and their unwritten frames; clocks run apart by as much as the protocol allows.
"""

from __future__ import annotations

import hashlib
import heapq
import math
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.store.linearizability import UNKNOWN, Call

from statepool.store.net.roles import TERM_SHIFT, Answer, Mirror, Position, Primary, Renewal, Vote, Witness

LEASE, PATIENCE, SECONDS = 3.0, 1.0, 60.0
MACHINES, WRITERS, READERS = ("a", "b", "c"), ("x", "y", "z"), ("r", "s")
CLIENTS = WRITERS + READERS


@dataclass(frozen=True)
class Frame:
    epoch: int
    lsn: int
    prev_crc: int
    operation: tuple[str, int]  # client, sequence

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.lsn, zlib.crc32(repr(self).encode()))


@dataclass
class Disk:
    """What survives a power cut."""

    log: list[Frame] = field(default_factory=list)
    epoch: int = 0
    term: int = 0
    fenced: int = 0
    mirror: bool = True

    @property
    def position(self) -> Position:
        return self.log[-1].position if self.log else Position()

    def has(self, position: Position) -> bool:
        if position.lsn == 0:
            return position == Position()
        return position.lsn <= len(self.log) and self.log[position.lsn - 1].position == position


class Machine:
    """One node; ``up`` counts its lives, so that what a former life had planned does not happen."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name, self.disk, self.up, self.alive = world, name, Disk(mirror=name != "a"), 0, False
        self.rate, self.offset = world.draw.uniform(0.955, 1.045), world.draw.uniform(0, 1000)
        self.primary: Primary | None = None
        self.mirror: Mirror | None = None

    def now(self) -> float:
        return self.world.time * self.rate + self.offset

    def later(self, delay: float, action: Callable[[], None]) -> None:
        life = self.up
        self.world.at(delay / self.rate, lambda: action() if self.alive and self.up == life else None)

    def start(self) -> None:
        self.alive, self.up, disk = True, self.up + 1, self.disk
        self.primary = self.mirror = None
        if not disk.mirror and disk.fenced > disk.term:
            disk.mirror = True  # what an operator does with a primary whose reign is over
        if disk.mirror:
            self.mirror = Mirror(self.name, disk.term, disk.position)
            self.asked, self.target, self.promoting = self.up << 20, self.name, False  # no two lives share a connection
            self.pull()
            return
        disk.epoch = max(disk.epoch + 1, disk.term << TERM_SHIFT)
        self.primary = Primary(self.name, disk.term, disk.epoch, len(disk.log), LEASE, PATIENCE)
        self.log, self.writing = list(disk.log), False
        self.last = {client: (sequence, f.lsn - 1) for f in self.log for client, sequence in (f.operation,)}
        self.waiting: list[tuple[int, str, int, int]] = []  # until which operation, for whom, what it is told
        self.renew()

    def crash(self) -> None:
        self.alive = False

    def receive(self, sender: str, kind: str, body: Any) -> None:
        handler = getattr(self, f"on_{kind}", None)
        if self.alive and handler is not None:
            handler(sender, body)

    # ---- as a primary ---------------------------------------------------------------------------------------------

    def renew(self) -> None:
        assert self.primary is not None
        self.world.send(self.name, "witness", "renew", self.primary.renewal(self.now()))
        switching = self.primary.wanted != self.primary.mirror
        self.later(LEASE / (50 if switching else 3), self.renew)

    def on_answer(self, sender: str, answer: Answer) -> None:
        if self.primary is not None:
            self.primary.answered(answer)
            self.fence()
        elif self.mirror is not None and self.promoting:
            self.promoted(answer)

    def fence(self) -> None:
        assert self.primary is not None
        self.disk.fenced = max(self.disk.fenced, self.primary.fenced)
        if self.primary.fenced:
            self.later(0.0, self.start)

    def on_write(self, client: str, sequence: int) -> None:
        role = self.primary
        if role is None or not role.may_acknowledge(self.now()):
            return
        last, _ = self.last.get(client, (0, 0))
        if sequence < last:
            return
        if sequence > last:
            if role.mirror_lost(self.now()):
                return
            crc = self.log[-1].position.crc if self.log else 0
            self.log.append(Frame(self.disk.epoch, len(self.log) + 1, crc, (client, sequence)))
            self.last[client] = sequence, len(self.log) - 1
            self.write()
        self.waiting.append((len(self.log), client, sequence, self.last[client][1]))
        self.acknowledge()

    def on_look(self, client: str, sequence: int) -> None:
        """How long the log is; told when a takeover would keep what was seen."""
        if self.primary is not None and self.primary.may_acknowledge(self.now()):
            self.waiting.append((len(self.log), client, sequence, len(self.log)))
            self.acknowledge()

    def write(self) -> None:
        if self.writing or len(self.disk.log) == len(self.log):
            return
        self.writing = True
        until = len(self.log)
        self.later(self.world.draw.uniform(0.0005, 0.02), lambda: self.written(until))

    def written(self, until: int) -> None:
        self.disk.log, self.writing = self.log[:until], False
        self.write()
        self.acknowledge()

    def acknowledge(self) -> None:
        role = self.primary
        assert role is not None
        done = min(len(self.disk.log), role.mirrored)
        ready, self.waiting = [w for w in self.waiting if w[0] <= done], [w for w in self.waiting if w[0] > done]
        if role.may_acknowledge(self.now()):
            for _, client, sequence, said in ready:
                self.world.acknowledged(self, client, sequence, said)

    def on_pull(self, sender: str, ask: tuple[int, int, Position]) -> None:
        role = self.primary
        if role is None:
            return
        number, term, position = ask
        role.heard(term)
        self.fence()
        if role.fenced:
            return
        if not self.disk.has(position):
            self.world.send(self.name, sender, "copy", (number, role.term, list(self.disk.log)))
            return
        role.pulled(sender, position, self.now())
        self.acknowledge()
        frames = self.disk.log[position.lsn : position.lsn + 5]
        self.world.send(self.name, sender, "frames", (number, role.term, frames))

    # ---- as a mirror ----------------------------------------------------------------------------------------------

    def pull(self) -> None:
        assert self.mirror is not None
        if self.promoting:
            return
        self.asked += 1
        asked = self.asked
        if self.target == self.name:
            self.target = self.world.draw.choice([m for m in MACHINES if m != self.name])
        self.world.send(self.name, self.target, "pull", (asked, self.mirror.term, self.mirror.position))

        def unanswered() -> None:
            if self.asked == asked:
                self.target = self.name
                self.pull()

        self.later(0.7, unanswered)

    def expects(self, number: int, term: int) -> bool:
        role = self.mirror
        if role is None or self.promoting or number != self.asked or not role.accepts(term):
            return False
        self.disk.term = role.term
        self.asked += 1
        return True

    def on_frames(self, sender: str, body: tuple[int, int, list[Frame]]) -> None:
        number, term, frames = body
        if not self.expects(number, term):
            return

        def durable() -> None:
            assert self.mirror is not None
            for frame in frames:
                assert self.mirror.follows(frame.epoch, frame.lsn, frame.prev_crc)
                self.disk.log.append(frame)
                self.mirror.position = frame.position
            self.pull()

        self.later(self.world.draw.uniform(0.0005, 0.02) if frames else 0.05, durable)

    def on_copy(self, sender: str, body: tuple[int, int, list[Frame]]) -> None:
        number, term, log = body
        if not self.expects(number, term):
            return

        def durable() -> None:
            assert self.mirror is not None
            self.disk.log = list(log)
            self.mirror.position = self.disk.position
            self.pull()

        self.later(self.world.draw.uniform(0.1, 1.0), durable)

    def promote(self) -> None:
        """What an operator does when the primary seems to be gone."""
        if self.mirror is None or self.promoting:
            return
        self.up += 1  # the process that pulled has ended
        self.promoting = True
        self.ask()

    def ask(self) -> None:
        if self.mirror is not None:
            self.world.send(self.name, "witness", "promote", self.name)
            self.later(0.3, self.ask)

    def promoted(self, answer: Answer) -> None:
        if answer.granted and answer.vote.holder == self.name and answer.vote.term > self.disk.term:
            self.disk.term, self.disk.mirror = answer.vote.term, False
            self.world.check_nothing_lost(self)
            self.start()
        elif not answer.granted and "lease" not in answer.reason:
            self.start()  # it stays a mirror


class World:
    """All of it, and what must never happen."""

    def __init__(self, seed: int) -> None:
        self.draw, self.time, self.events, self.count = random.Random(seed), 0.0, [], 0
        self.trace = hashlib.sha256()
        self.machines = {name: Machine(self, name) for name in MACHINES}
        self.vote, self.witness_up = Vote(), False
        self.witness_rate = self.draw.uniform(0.955, 1.045)
        self.acked: set[tuple[str, int]] = set()
        self.next = dict.fromkeys(CLIENTS, 1)
        self.begun: dict[tuple[str, int], float] = {}
        self.ended: dict[tuple[str, int], tuple[float, int]] = {}
        self.cut: set[frozenset[str]] = set()
        self.calm = False
        self.promotions = self.violations = self.steps = 0
        self.reigning: list[str] = []

    def at(self, delay: float, action: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.events, (self.time + delay, self.count, action))

    # ---- the network ------------------------------------------------------------------------------------------------

    def send(self, sender: str, to: str, kind: str, body: Any) -> None:
        if frozenset((sender, to)) in self.cut:
            return
        draw = self.draw
        lost, twice = (0.0, 0.0) if self.calm else (0.05, 0.05)
        for _ in range(1 + (draw.random() < twice)):
            if draw.random() < lost:
                continue
            delay = draw.expovariate(1 / 0.002) if self.calm or draw.random() < 0.95 else draw.uniform(0, 5)
            self.at(0.0002 + delay, lambda: self.deliver(sender, to, kind, body))

    def deliver(self, sender: str, to: str, kind: str, body: Any) -> None:
        self.trace.update(f"{self.time:.9f} {sender} {to} {kind} {body!r}\n".encode())
        if to == "witness":
            self.witness_answers(sender, kind, body)
        elif to in CLIENTS:
            self.told(to, body)
        else:
            self.machines[to].receive(sender, kind, body)

    def witness_answers(self, sender: str, kind: str, body: Renewal | str) -> None:
        if not self.witness_up:
            return
        now = self.time * self.witness_rate
        answer = self.witness.renew(body, now) if isinstance(body, Renewal) else self.witness.promote(body, now)
        self.promotions += answer.vote.term > self.vote.term
        self.vote = self.witness.vote  # on disk before the answer leaves
        self.send("witness", sender, "answer", answer)

    # ---- clients ----------------------------------------------------------------------------------------------------

    def ask(self, client: str, sequence: int) -> None:
        """Again and again until it is acknowledged, at whatever machine."""
        if self.next[client] == sequence:
            self.begun.setdefault((client, sequence), self.time)
            to = self.reigning[-1] if self.reigning and self.draw.random() < 0.7 else self.draw.choice(MACHINES)
            self.send(client, to, "look" if client in READERS else "write", sequence)
            self.at(self.draw.uniform(0.05, 0.4), lambda: self.ask(client, sequence))

    def acknowledged(self, machine: Machine, client: str, sequence: int, said: int) -> None:
        self.reigning = [machine.name]
        self.send(machine.name, client, "acknowledged", (sequence, said))
        if client in WRITERS:
            self.acked.add((client, sequence))  # from when it leaves: whether it arrives or not

    def told(self, client: str, body: tuple[int, int]) -> None:
        sequence, said = body
        if self.next[client] == sequence:
            self.ended[client, sequence] = self.time, said
            self.next[client] += 1
            self.at(self.draw.uniform(0.0, 0.05), lambda: self.ask(client, sequence + 1))

    def history(self) -> list[Call]:
        """What the clients saw: numbers of entries appended to one log, and its length."""
        calls = []
        for (client, sequence), start in self.begun.items():
            end, said = self.ended.get((client, sequence), (math.inf, UNKNOWN))
            calls.append(Call("log", "length" if client in READERS else "append", (), start, end, said, client))
        return calls

    # ---- what happens to the machines -----------------------------------------------------------------------------

    def start_witness(self) -> None:
        self.witness, self.witness_up = Witness(self.vote, LEASE, self.time * self.witness_rate), True

    def trouble(self) -> None:
        """Something breaks; it is repaired some seconds later."""
        if self.calm:
            return
        draw, kind = self.draw, self.draw.random()
        machine = self.machines[draw.choice(MACHINES)]
        if kind < 0.35:
            if draw.random() < 0.5:
                machine = self.machines.get(self.vote.holder, machine)
            machine.crash()
            self.at(draw.uniform(0.1, 6), lambda: None if machine.alive else machine.start())
        elif kind < 0.45:
            self.witness_up = False
            self.at(draw.uniform(0.1, 4), self.start_witness)
        elif kind < 0.75:
            pair = frozenset(draw.sample((*MACHINES, "witness"), 2))
            self.cut.add(pair)
            self.at(draw.uniform(0.5, 8), lambda: self.cut.discard(pair))
        else:
            chosen = self.machines.get(self.vote.mirror, machine) if draw.random() < 0.7 else machine
            if chosen.alive:
                chosen.promote()
        self.at(draw.expovariate(1 / 1.0), self.trouble)

    def check(self) -> None:
        """At no instant may two machines acknowledge."""
        able = [
            m.name
            for m in self.machines.values()
            if m.alive and m.primary is not None and m.primary.may_acknowledge(m.now())
        ]
        if len(able) > 1:
            raise AssertionError(f"at {self.time:.3f} s {able} may acknowledge")

    def check_nothing_lost(self, machine: Machine) -> None:
        operations = [frame.operation for frame in machine.disk.log]
        lost = self.acked - set(operations)
        if lost:
            raise AssertionError(f"at {self.time:.3f} s {machine.name} reigns without {sorted(lost)}")
        if len(set(operations)) != len(operations):
            raise AssertionError(f"at {self.time:.3f} s {machine.name} has an operation twice")

    # ---- the run ----------------------------------------------------------------------------------------------------

    def run_until(self, end: float) -> None:
        while self.events and self.events[0][0] <= end:
            self.time, _, action = heapq.heappop(self.events)
            action()
            self.check()
            self.steps += 1
        self.time = end

    def run(self) -> World:
        self.start_witness()
        for machine in self.machines.values():
            machine.start()
        for client in CLIENTS:
            self.at(1.0, lambda client=client: self.ask(client, 1))
        self.at(4.0, self.trouble)
        self.run_until(SECONDS)
        before = len(self.acked)
        self.calm = True
        self.cut.clear()
        for machine in self.machines.values():
            if not machine.alive:
                machine.start()
        for turn in range(6):  # an operator makes one reign, if none does
            self.run_until(SECONDS + 10 * (turn + 1))
            if len(self.acked) > before + 20:
                break
            granted = self.machines[self.vote.holder]  # it may have died before it heard of that
            (granted if granted.mirror else self.machines[self.vote.mirror or self.draw.choice(MACHINES)]).promote()
        assert len(self.acked) > before + 20, "it does not get going again"
        reigning = next(m for m in self.machines.values() if m.name == self.vote.holder)
        self.check_nothing_lost(reigning)
        return self
