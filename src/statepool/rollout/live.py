"""The controller of an iteration: carries the scheduler's decisions to the engines and tells it what they report."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from statepool.core.errors import InvalidRequest, StatepoolError
from statepool.engine.config import EngineStats
from statepool.kv.layout import BLOCK_SIZE
from statepool.rollout.core import Core
from statepool.rollout.events import (
    Abort,
    ChunkDone,
    Decision,
    Dispatch,
    Draft,
    Event,
    Finished,
    Free,
    InstanceJoined,
    InstanceLost,
    Progress,
    Submit,
    ToolReturn,
    ToolWait,
)
from statepool.rollout.groups import ChunkRecord, Group, Response, request_id
from statepool.rollout.hosts import Hosts, Joined, LocalHosts, Lost
from statepool.rollout.instance import Gain, Task
from statepool.rollout.journal import Journal, Kept
from statepool.rollout.lengths import LengthPrior
from statepool.rollout.policies import make
from statepool.rollout.policies.base import DraftPlanner, Policy
from statepool.rollout.tools import Conversation, Tools, ToolThreads
from statepool.tasks import Turn

__all__ = ["Controller", "Progressed", "Rollout", "rollout"]

_WAIT = 0.1
"""Seconds to wait for news of engines."""
_TOOL_WAIT = 0.005
"""The same while tools run, whose news come from elsewhere."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """A finished iteration.

    Attributes:
        responses: by group and index, in the order they were asked for.
        seconds: from the first dispatch to the last token.
        engines: counters of each engine at the end, over all of its life.
        decisions: chunks placed.
        preemptions: running responses that an engine pushed out for want of KV.
        refilled: output tokens whose KV was not there when a chunk began, and was computed again.
    """

    responses: tuple[Response, ...]
    seconds: float
    engines: tuple[EngineStats, ...]
    decisions: int
    preemptions: int
    refilled: int

    @property
    def tokens(self) -> int:
        """Output tokens."""
        return sum(len(response.tokens) for response in self.responses)

    def by_group(self) -> dict[str, list[Response]]:
        """Responses of each group, by index."""
        found: dict[str, list[Response]] = {}
        for response in self.responses:
            found.setdefault(response.group, []).append(response)
        return found


@dataclass(frozen=True, slots=True)
class Progressed:
    """How far an iteration is, for whoever looks on."""

    done: int
    total: int
    tokens: int
    seconds: float
    running: tuple[tuple[str, int], ...]
    """Names of running responses and their tokens, longest first."""


@dataclass(slots=True)
class _Live:
    """A response under way."""

    number: int
    group: Group
    index: int
    kept: Kept
    chunks: list[ChunkRecord] = field(default_factory=list)
    began: float = 0.0
    start: int = 0
    talk: Conversation = field(default_factory=Conversation)

    @property
    def name(self) -> str:
        """In engines and logs."""
        return request_id(self.group.id, self.index)


class Controller:
    """One iteration on ``hosts``.

    Args:
        hosts: the engines.
        groups: what is wanted; ids must differ.
        policy: decides; see ``policies.make``.
        seed: with group, index and position the key of all noise.
        planner: chooses draft lengths.
        tools: the world's side, where responses take several turns.
        journal: folder of a store that keeps what is made; a killed controller goes on from it. A conversation is kept
            when it is over; one that was not begins anew, since what its tools had done died with them.
        on_response: called with each response as it ends.
        on_progress: called a few times a second.
        record: called with every batch of events and the decisions on it.
        clock: seconds.

    Raises:
        InvalidRequest: two groups have one id, or a response cannot fit any engine.
    """

    def __init__(
        self,
        hosts: Hosts,
        groups: Sequence[Group],
        policy: Policy,
        *,
        seed: int = 0,
        planner: DraftPlanner | None = None,
        tools: Tools | None = None,
        journal: Path | None = None,
        on_response: Callable[[Response], None] | None = None,
        on_progress: Callable[[Progressed], None] | None = None,
        record: Callable[[Sequence[Event], Sequence[Decision]], None] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if len({group.id for group in groups}) < len(groups):
            raise InvalidRequest("two groups have the same id", param="id")
        self._hosts = hosts
        self._groups = list(groups)
        self._seed = seed
        self._tools = tools
        self._threads: ToolThreads | None = None
        self._core = Core(policy, planner, BLOCK_SIZE)
        self._journal_folder = journal
        self._journal: Journal | None = None
        self._on_response = on_response
        self._on_progress = on_progress
        self._record = record
        self._clock = clock
        self._version = hosts.version()
        self._jobs: list[_Live] = []
        self._numbers: dict[str, int] = {}
        self._looked = 0.0
        self._room = max(min(seat.capacity, seat.context) for seat in hosts.seats())
        for group in self._groups:
            self._check(group, policy)
            for index in range(group.size):
                self._numbers[request_id(group.id, index)] = len(self._jobs)
                self._jobs.append(_Live(len(self._jobs), group, index, Kept()))

    def run(self) -> Rollout:
        """Run to the last response.

        Raises:
            Unavailable: all engines are gone for good.
            InvalidCheckpoint: the weights give logits that are not finite.
            StatepoolError: an engine gave up a response.
        """
        if self._journal_folder is None:
            return self._run()
        with Journal(self._journal_folder, self._groups, self._seed, self._version) as journal:
            self._journal = journal
            for name, kept in journal.kept.items():
                self._jobs[self._numbers[name]].kept = kept
            done = self._run()
            journal.clear()
        return done

    def _run(self) -> Rollout:
        if self._tools is None:
            return self._iterate()
        self._threads = ToolThreads(self._tools)
        try:
            return self._iterate()
        finally:
            self._threads.close()

    def _iterate(self) -> Rollout:
        self._hosts.begin(secrets.token_hex(8))
        before = self._counts()
        self._begun = self._clock()
        events: list[Event] = [
            InstanceJoined(number, seat.capacity, seat.seats) for number, seat in enumerate(self._hosts.seats())
        ]
        places = {group.id: place for place, group in enumerate(self._groups)}
        for job in self._jobs:
            if job.kept.finish is None:
                have, group = job.kept.chosen, job.group
                limit = group.params.max_tokens
                events.append(Submit(job.number, places[group.id], job.index, len(group.prompt), limit, have))
            elif self._on_response is not None:
                self._on_response(self._response(job))
        self._decide(events)
        while self._core.state.left:
            busy = self._threads is not None and self._threads.busy
            notices = self._hosts.poll(_TOOL_WAIT if busy else _WAIT)
            events = self._events(notices)
            if busy:
                events += self._answers(0.0 if self._core.state.running else _WAIT)
            if events:
                self._decide(events)
            self._look()
        if self._hosts.version() != self._version:
            raise InvalidRequest(
                f"weights went from {self._version} to {self._hosts.version()} within an iteration", param="version"
            )
        seconds = self._clock() - self._begun
        # A policy that over-samples leaves some unfinished; every other one none.
        responses = tuple(self._response(job) for job in self._jobs if job.kept.finish is not None)
        preempted, refilled = (max(now - then, 0) for now, then in zip(self._counts(), before, strict=True))
        engines = tuple(self._hosts.stats())
        return Rollout(responses, seconds, engines, self._core.decisions, preempted, refilled)

    def _counts(self) -> tuple[int, int]:
        return sum(stats.preemptions for stats in self._hosts.stats()), self._hosts.refilled()

    # -- what the engines say ---------------------------------------------------------------------------

    def _events(self, notices: Sequence[tuple[int, Any]]) -> list[Event]:
        events: list[Event] = []
        records: list[tuple[Any, ...]] = []
        ended: list[_Live] = []
        for number, notice in notices:
            if isinstance(notice, Lost):
                running = self._core.state.instances[number].running
                known = tuple((job, self._jobs[job].kept.chosen) for job in sorted(running))
                events.append(InstanceLost(number, known))
            elif isinstance(notice, Joined):
                events.append(InstanceJoined(number, notice.seat.capacity, notice.seat.seats))
            elif isinstance(notice, Gain):
                job = self._jobs[self._numbers[notice.id]]
                event = self._gained(job, number, notice)
                if event is None:
                    continue
                events.append(event)
                if self._tools is None:
                    records.append((notice.id, notice.start, notice.tokens, notice.logprobs, notice.text,
                                    notice.finish, notice.drafted, notice.accepted))  # fmt: skip
                if job.kept.finish is not None:
                    ended.append(job)
        self._keep(records, ended)
        return events

    def _keep(self, records: list[tuple[Any, ...]], ended: Sequence[_Live]) -> None:
        """Write down what is new, then hand over the responses that are complete."""
        if self._tools is not None:
            records = [job.kept.record(job.name) for job in ended]
        if records and self._journal is not None:
            self._journal.add(records)
        if self._on_response is not None:
            for job in ended:
                self._on_response(self._response(job))

    def _gained(self, job: _Live, number: int, gain: Gain) -> Event | None:
        running = self._core.state.jobs[job.number]
        if running.at != number or running.phase != "running":
            return None  # an engine that was given up speaks once more
        if gain.error is not None:
            raise StatepoolError(f"{gain.id}: {gain.error}")
        kept = job.kept
        assert job.talk.start + gain.start == len(kept.tokens), "a report is missing"
        kept.tokens += gain.tokens
        kept.logprobs += gain.logprobs
        kept.text += gain.text
        kept.drafted += gain.drafted
        kept.accepted += gain.accepted
        have = kept.chosen
        if not gain.left:
            return Progress(job.number, have)
        now = self._clock() - self._begun
        job.chunks.append(ChunkRecord(number, job.began, now, job.start, len(kept.tokens)))
        if gain.finish is None:
            return ChunkDone(job.number, have)
        if self._threads is not None and gain.finish == "stop":
            job.talk.calls.append((now, now))
            self._threads.ask(job.number, job.talk, job.group.id, job.index, kept.tokens[job.talk.start :])
            return ToolWait(job.number, have)
        if self._threads is not None:
            self._threads.close_one(job.talk)
        kept.finish = gain.finish
        return Finished(job.number, have)

    # -- what the world says ----------------------------------------------------------------------------

    def _answers(self, seconds: float) -> list[Event]:
        assert self._threads is not None
        events: list[Event] = []
        ended = []
        for number, turn in self._threads.answers(seconds):
            job = self._jobs[number]
            job.talk.calls[-1] = (job.talk.calls[-1][0], self._clock() - self._begun)
            event = self._answered(job, turn)
            events.append(event)
            if isinstance(event, Finished):
                self._threads.close_one(job.talk)
                ended.append(job)
        self._keep([], ended)
        return events

    def _answered(self, job: _Live, turn: Turn) -> Event:
        """Take what the world said; the response goes on, or is over."""
        assert self._tools is not None
        kept, tools = job.kept, self._tools
        kept.faults += turn.faults
        said: list[int] = []
        if turn.content is None:
            kept.verdict, kept.finish = turn.verdict, "stop" if turn.verdict is not None else "lost"
        elif job.talk.turns >= tools.turns:
            kept.finish = "turns"
        else:
            said = tools.speech.said(turn.content, turn.role, tools.speech.ended(kept.tokens))
            most = job.group.params.max_tokens - kept.chosen
            chunk = self._core.policy.chunk_of(self._core.state.jobs[job.number])
            # What is placed next, a turn or a chunk, must fit; the turns behind it are not there yet.
            ahead = max(min(most, tools.turn_tokens or most), chunk)
            if most < 1 or len(job.group.prompt) + len(kept.tokens) + len(said) + ahead > self._room:
                kept.finish = "length"
        if kept.finish is not None:
            return Finished(job.number, kept.chosen)
        kept.said.append((len(kept.tokens), len(kept.tokens) + len(said)))
        kept.tokens += said
        if kept.logprobs:
            kept.logprobs += [0.0] * len(said)
        job.talk.start = len(kept.tokens)
        return ToolReturn(job.number, len(said))

    # -- what the scheduler says ------------------------------------------------------------------------

    def _decide(self, events: list[Event]) -> None:
        decisions = self._core.on_event(*events)
        if self._record is not None:
            self._record(events, decisions)
        for decision in decisions:
            match decision:
                case Dispatch(number, instance, tokens, source):
                    job = self._jobs[number]
                    job.began, job.start = self._clock() - self._begun, len(job.kept.tokens)
                    self._hosts.start(instance, self._task(job, tokens), source)
                case Free(number) if self._tools is not None:
                    home = self._core.state.jobs[number].home
                    if home is not None:
                        self._hosts.forget(home, self._jobs[number].name)
                case Draft(instance, probes, rest, paths):
                    self._hosts.draft(instance, probes, rest, paths)
                case Abort(number, instance):
                    self._hosts.abort(instance, self._jobs[number].name)

    def _task(self, job: _Live, tokens: int) -> Task:
        """The next ``tokens`` of a response, as its engine is asked for them; a turn is a request of its own."""
        request, kept, start = job.group.request(job.index, self._seed), job.kept, job.talk.start
        probe = self._core.state.jobs[job.number].probe
        output = tuple(kept.tokens[start:])
        if self._tools is not None:
            params, tools = request.params, self._tools
            most = params.max_tokens - (kept.chosen - len(output))
            ends = () if tools.speech.call_end is None else (tools.speech.call_end,)
            params = replace(
                params,
                max_tokens=min(most, tools.turn_tokens or most),
                stop_token_ids=(*params.stop_token_ids, *ends),
                show_special=None,
            )
            prompt = request.prompt + tuple(kept.tokens[:start])
            request = replace(request, prompt=prompt, params=params, session=request.id)
        return Task(request, output, len(output) + tokens, probe, history=start)

    def _response(self, job: _Live) -> Response:
        kept = job.kept
        return Response(
            job.group.id, job.index, tuple(kept.tokens), tuple(kept.logprobs), kept.text, kept.finish or "abort",
            self._version, kept.drafted, kept.accepted, tuple(job.chunks),
            tuple(kept.said), kept.verdict, kept.faults, tuple(job.talk.calls),
        )  # fmt: skip

    def _look(self) -> None:
        now = self._clock()
        if self._on_progress is None or (now - self._looked < 0.1 and self._core.state.left):
            return
        self._looked = now
        state = self._core.state
        running = [
            (self._jobs[job.number].name, job.generated)
            for instance in state.instances
            for job in instance.running.values()
        ]
        running.sort(key=lambda entry: -entry[1])
        tokens = sum(len(job.kept.tokens) for job in self._jobs)
        total = len(self._jobs)
        self._on_progress(Progressed(total - state.left, total, tokens, now - self._begun, tuple(running)))

    def _check(self, group: Group, policy: Policy) -> None:
        most = len(group.prompt) + group.params.max_tokens
        room = max(seat.capacity for seat in self._hosts.seats())
        if policy.divided and most > room:
            raise InvalidRequest(
                f"group {group.id!r} may need {most} tokens of KV and no engine has more than {room}; "
                "lower max_tokens or raise kv_bytes",
                param="max_tokens",
            )


def default_chunk(groups: Sequence[Group]) -> int:
    """Tokens of a chunk that suit ``groups``: an eighth of the longest response, at least 16."""
    return max(max(group.params.max_tokens for group in groups) // 8, 16)


def rollout(
    engines: Any,
    groups: Sequence[Group],
    *,
    policy: str | Policy = "auto",
    chunk: int | None = None,
    seed: int = 0,
    prior: LengthPrior | None = None,
    **settings: Any,
) -> Rollout:
    """Answer every group; the tokens are the same for any policy, chunk, number of engines or speculation.

    Args:
        engines: an ``Engine``, several, or ``Hosts`` such as a ``Fleet`` of processes.
        groups: prompts with their number of responses.
        policy: its name (``policies.NAMES``), or a policy.
        chunk: tokens after which a response may move; None: an eighth of the longest ``max_tokens``, at least 16.
        seed: of the iteration; with (group, index, position) the key of all noise.
        prior: of lengths, fitted to an iteration before (``LengthPrior.fit``).
        settings: of ``Controller``: tools, journal, on_response, on_progress, record, planner.

    Raises:
        InvalidRequest, InvalidConfig: what was asked for is impossible; the message names the field.
        Unavailable: all engines are gone.
    """
    if not groups:
        raise InvalidRequest("a rollout needs at least one group", param="groups")
    mine = not hasattr(engines, "poll")
    hosts = LocalHosts(engines if isinstance(engines, Sequence) else [engines]) if mine else engines
    if isinstance(policy, str):
        policy = make(policy, chunk or default_chunk(groups), seed=seed, prior=prior, drafts=hosts.drafts)
    try:
        return Controller(hosts, groups, policy, seed=seed, **settings).run()
    except BaseException:
        if mine:
            hosts.begin("")  # the engines are somebody's: nothing of this iteration stays in them
        raise
