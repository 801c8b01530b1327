"""One engine of a rollout: runs chunks, lets jobs go with their KV when a chunk ends, tells what each has gained.

Between two chunks a job is parked: its KV stays where it is until its room is needed or another engine is to go on
with it. Then it goes, as bytes, into a ``StatePool`` that outlives the engine, and nothing is computed again. Where the
engine has a shared block pool (``EngineConfig.pool``) the bytes are the last, unfinished block alone.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec

from statepool.core.errors import Corruption, InvalidCheckpoint, InvalidRequest
from statepool.engine.request import Request
from statepool.kv.layout import BLOCK_SIZE

__all__ = ["FolderStates", "Gain", "Instance", "MemoryStates", "StatePool", "Task"]


class Task(msgspec.Struct, frozen=True):
    """A chunk to run: ``request`` behind its first ``output`` tokens, until it has ``stop`` of them.

    ``history`` counts the last tokens of the prompt that are of turns before: with a session of the request's name
    their KV is on the engine, or in the state pool.
    """

    request: Request
    output: tuple[int, ...]
    stop: int
    probe: bool = False
    history: int = 0


class Gain(msgspec.Struct, frozen=True):
    """What a job has gained since the last report. ``left``: it is not on the engine any more.

    ``start`` is the number of the first of ``tokens`` in the output; ``finish`` ends the response.
    """

    id: str
    start: int
    tokens: list[int]
    logprobs: list[float]
    text: str = ""
    left: bool = False
    finish: str | None = None
    drafted: int = 0
    accepted: int = 0
    error: str | None = None


class StatePool(Protocol):
    """Where the KV of jobs between two chunks is kept: bytes by name."""

    def put(self, name: str, state: bytes) -> bool:
        """Keep ``state``; False if there is no room, and then it is computed again."""
        ...

    def get(self, name: str) -> bytes | None:
        """What was kept under ``name``."""
        ...

    def drop(self, name: str) -> None:
        """Forget it."""
        ...


class MemoryStates:
    """States in this process.

    Args:
        limit: most bytes.
    """

    def __init__(self, limit: int = 1 << 30) -> None:
        self._limit = limit
        self._states: dict[str, bytes] = {}
        self.used = 0

    def put(self, name: str, state: bytes) -> bool:
        """See ``StatePool.put``."""
        self.drop(name)
        if self.used + len(state) > self._limit:
            return False
        self._states[name] = state
        self.used += len(state)
        return True

    def get(self, name: str) -> bytes | None:
        """See ``StatePool.get``."""
        return self._states.get(name)

    def drop(self, name: str) -> None:
        """See ``StatePool.drop``."""
        self.used -= len(self._states.pop(name, b""))


class FolderStates:
    """States as files that all processes of a machine see; in ``/dev/shm`` they never touch a disk.

    Args:
        folder: exists; emptied by its owner.
        limit: most bytes in it.
    """

    def __init__(self, folder: Path, limit: int = 1 << 30) -> None:
        self._folder = folder
        self._limit = limit

    def put(self, name: str, state: bytes) -> bool:
        """See ``StatePool.put``."""
        path = self._path(name)
        with os.scandir(self._folder) as entries:
            used = 0
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # another engine has just taken it
                    used += entry.stat().st_size
        if used + len(state) > self._limit:
            path.unlink(missing_ok=True)
            return False
        part = path.with_suffix(f".{os.getpid()}")
        part.write_bytes(state)
        part.replace(path)
        return True

    def get(self, name: str) -> bytes | None:
        """See ``StatePool.get``."""
        try:
            return self._path(name).read_bytes()
        except FileNotFoundError:
            return None

    def drop(self, name: str) -> None:
        """See ``StatePool.drop``."""
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name.encode().hex()}.state"


@dataclass(slots=True)
class _Held:
    """A job on the engine."""

    task: Task
    length: int
    told: int

    @property
    def blocks(self) -> int:
        """Blocks of KV that its chunk may come to need."""
        return -(-(len(self.task.request.prompt) + self.task.stop) // BLOCK_SIZE)

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: list[str] = field(default_factory=list)


class Instance:
    """Chunks on one engine. Not thread-safe.

    Args:
        engine: ``statepool.engine.engine.Engine``, or what has its methods.
        states: where KV waits between chunks.
        report_every: steps after which running jobs tell what they have gained.
        drafts: what drafts for the jobs here and wants to know of their tokens.
    """

    def __init__(self, engine: Any, states: StatePool, report_every: int = 16, drafts: Drafts | None = None) -> None:
        self.engine = engine
        self._states = states
        self._every = report_every
        self._drafts = drafts
        self._held: dict[str, _Held] = {}
        self._parked: dict[str, int] = {}  # blocks of each, longest parked first
        self._lengths: dict[str, int] = {}
        self._sessions: set[str] = set()
        """Jobs between two turns, whose KV the engine keeps as a session."""
        self._released: dict[str, str] = {}
        """Jobs that had to make room, and where the state pool has their KV."""
        self._steps = 0
        self.refilled = 0
        """Output tokens whose KV was lost and had to be computed again."""
        if drafts is not None:
            engine.draft_with(drafts)

    def begin(self, iteration: str) -> None:
        """Forget what an iteration before has left, and its texts: their names may come again."""
        for name in {*self._held, *self._parked, *self._sessions}:
            self.abort(name)
        self._released.clear()
        if self._drafts is not None:
            self._drafts.begin(iteration)

    @property
    def drafting(self) -> Drafts | None:
        """What drafts here, if anything does."""
        return self._drafts

    @property
    def busy(self) -> bool:
        """Whether ``step`` would do something."""
        return bool(self._held)

    def start(self, task: Task) -> Gain | None:
        """Take in a chunk; a ``Gain`` with an error if the engine refuses it.

        Raises:
            InvalidRequest: the chunk is empty.
        """
        name = task.request.id
        if task.stop <= len(task.output):
            raise InvalidRequest(
                f"the chunk of {name} ends at {task.stop}, where it begins: {len(task.output)}", param="stop"
            )
        held = _Held(task, len(task.output), len(task.output))
        if self._parked.pop(name, None) is not None:
            self.engine.unpark(name)
        else:
            try:
                self._bring(task)
            except InvalidRequest as error:
                return Gain(name, len(task.output), [], [], left=True, finish="error", error=error.message)
        self._held[name] = held
        if self._parked:
            self._make_room()
        if self._drafts is not None:
            self._drafts.enter(task)
        return None

    def step(self) -> list[Gain]:
        """One step of the engine; what is to be told after it.

        Raises:
            InvalidCheckpoint: the weights give logits that no token can be chosen from.
        """
        gains: list[Gain] = []
        try:
            outputs = self.engine.step()
        except ValueError as error:  # the sampler's word for logits that are no numbers
            raise InvalidCheckpoint(
                f"weights {self.engine.version} give logits that are not finite ({error}); publish others and run again"
            ) from error
        for output in outputs:
            held = self._held.get(output.id)
            if held is None:
                continue
            held.tokens += output.tokens
            held.logprobs += output.sampled_logprobs
            held.text.append(output.text)
            held.length += len(output.tokens)
            if self._drafts is not None and output.tokens:
                self._drafts.gained(output.id, output.tokens)
            if output.finish_reason is not None:
                gains.append(self._leave(output.id, output))
            elif held.length >= held.task.stop:
                self.engine.park(output.id)
                length = len(held.task.request.prompt) + held.length
                self._parked[output.id] = -(-length // BLOCK_SIZE)
                self._lengths[output.id] = held.length
                gains.append(self._leave(output.id, None))
        self._steps += 1
        if self._steps % self._every == 0:
            gains += [self._tell(name) for name, held in self._held.items() if held.tokens]
        return gains

    def draft(self, probe: int, rest: int, paths: int) -> None:
        """Draft lengths from now on; see ``Hosts.draft``."""
        if self._drafts is not None:
            self._drafts.lengths(probe, rest, paths)

    def release(self, name: str) -> str | None:
        """Give the KV of a job that rests here to the state pool, for another engine; under which name it lies there.

        None if the pool has no room, or the job left nothing here.
        """
        if self._parked.pop(name, None) is not None:
            key = _state_name(name, self._lengths.pop(name))
            kept = self._states.put(key, self.engine.export_state(name, pooled=True))
        elif name in self._sessions:
            self._sessions.discard(name)
            key = name
            kept = self._states.put(key, self.engine.sessions.give("", name))
        else:
            return self._released.pop(name, None)
        return key if kept else None

    @staticmethod
    def state_name(task: Task) -> str:
        """The name under which the state pool has the KV of a chunk that begins."""
        return _state_name(task.request.id, len(task.output)) if task.output else task.request.id

    def abort(self, name: str) -> None:
        """Drop a job, and what is kept of its turns."""
        if self._held.pop(name, None) is not None and self._drafts is not None:
            self._drafts.leave(name)
        self._parked.pop(name, None)
        self._released.pop(name, None)
        self.engine.abort(name)
        if name in self._sessions:
            self._sessions.discard(name)
            self.engine.sessions.drop("", name)

    def _bring(self, task: Task) -> None:
        """Take a job into the engine that is not here: from the state pool, or computed again from its tokens."""
        self._released.pop(task.request.id, None)
        if task.output:
            # The number of tokens is part of the name: after a loss an older state may still be there.
            kept = self.state_name(task)
            state = self._states.get(kept)
            self._states.drop(kept)
            if state is not None and self._adopt(state):
                return
        if task.output:
            self.refilled += len(task.output)
            seed = task.request.params.seed
            assert seed is not None
            self.engine.take_over(task.request, seed, task.output)
            return
        if task.history and task.request.id not in self._sessions and not self._adopt_session(task.request.id):
            self.refilled += task.history
        self._sessions.discard(task.request.id)
        self.engine.submit(task.request)

    def _make_room(self) -> None:
        """Let parked jobs go until all that may be needed fits beside those that stay."""
        wanted = sum(held.blocks for held in self._held.values())
        while self._parked and wanted + sum(self._parked.values()) > self.engine.pool.total:
            name = next(iter(self._parked))
            key = self.release(name)
            if key is not None:
                self._released[name] = key

    def _adopt(self, state: bytes) -> bool:
        try:
            self.engine.import_state(state)
        except Corruption:
            return False
        return True

    def _adopt_session(self, name: str) -> bool:
        state = self._states.get(name)
        self._states.drop(name)
        if state is None:
            return False
        try:
            self.engine.sessions.take("", name, state)
        except Corruption:
            return False
        return True

    def _leave(self, name: str, output: Any) -> Gain:
        counts = self._drafts.leave(name) if self._drafts is not None else (0, 0)
        gain = self._tell(name)
        request = self._held.pop(name).task.request
        if output is not None and output.finish_reason != "error" and request.session is not None:
            self._sessions.add(name)  # the engine keeps the KV of a turn until somebody goes on, or nobody will
        return msgspec.structs.replace(
            gain,
            left=True,
            finish=None if output is None else output.finish_reason,
            drafted=counts[0],
            accepted=counts[1],
            error=None if output is None else output.error,
        )

    def _tell(self, name: str) -> Gain:
        held = self._held[name]
        gain = Gain(name, held.told, held.tokens, held.logprobs, "".join(held.text))
        held.told += len(held.tokens)
        held.tokens, held.logprobs, held.text = [], [], []
        return gain


def _state_name(name: str, length: int) -> str:
    return f"{name}@{length}"


class Drafts(Protocol):
    """Drafts for the jobs of an instance; the engine calls ``draft`` before a step."""

    def begin(self, iteration: str) -> None:
        """An iteration begins; ``iteration`` names it among all."""
        ...

    def enter(self, task: Task) -> None:
        """A chunk begins."""
        ...

    def gained(self, name: str, tokens: tuple[int, ...]) -> None:
        """A job has these tokens more."""
        ...

    def leave(self, name: str) -> tuple[int, int]:
        """A job has left; draft tokens verified and accepted in its chunk."""
        ...

    def lengths(self, probe: int, rest: int, paths: int) -> None:
        """Most draft tokens of probes and of others, and paths per draft."""
        ...

    def draft(self, sequences: list[Any], keys: Any) -> None:
        """Set the drafts of sequences that wait for a token."""
        ...
