"""Many conversations at once on one engine: the model's turns in one batch, the world's turns beside it.

    prompt ──► once per group ──► forked to its members ──► turn ──► tool or judge, in a thread ──► next turn …
                                        ▲ the other conversations go on generating meanwhile ▲

Tokens in, tokens out: the next prompt is the tokens so far plus those of what the world said; nothing is decoded and
encoded again. The KV of a conversation stays in the engine's pool under its name, so a turn computes what is new.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from statepool.engine.engine import Engine
from statepool.engine.request import Output, Request, SamplingParams
from statepool.rollout.speech import Speech
from statepool.tasks import Dialogue, Problem, Task, Turn
from statepool.train.trajectory import Segment, Trajectory

_log = logging.getLogger(__name__)
_SHARED = "shared beginning"


@dataclass(frozen=True, slots=True)
class Job:
    """One problem to be answered ``members`` times; noise depends on ``seed``, the member and the position only."""

    problem: Problem
    group: int
    members: int
    seed: int


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """How conversations are sampled.

    Args:
        turns: most turns of the model.
        turn_tokens: most tokens of one turn.
        temperature: 0 takes the likeliest token.
        tool_threads: tools and judges that run at the same time.
        patience: seconds without any answer from the world after which it counts as broken; its own limits are lower.
    """

    turns: int = 6
    turn_tokens: int = 128
    temperature: float = 1.0
    tool_threads: int = 4
    patience: float = 120.0


@dataclass(slots=True)
class Work:
    """What conversations cost, in tokens."""

    computed: int = 0
    """Tokens of prompts that were computed: all that did not come from the pool."""
    fresh: int = 0
    """The least of that: tokens no conversation had before, and the last one of each turn, whose KV is not there."""
    generated: int = 0


@dataclass(slots=True)
class _Open:
    """A conversation that is not over."""

    trajectory: Trajectory
    dialogue: Dialogue
    seed: int
    name: str
    tokens: list[int] = field(default_factory=list)
    text: str = ""


class Agent:
    """Runs conversations of one task on one engine.

    Args:
        engine: nobody else may use it during ``run``.
        task: where prompts and tools come from.
        open_dialogue: the world's side of a conversation about a problem, in a group.
        config: how to sample.

    Raises:
        InvalidConfig: the chat template has no form for what a tool says.
    """

    def __init__(
        self, engine: Engine, task: Task, open_dialogue: Callable[[Problem, int], Dialogue], config: AgentConfig
    ) -> None:
        self.engine = engine
        self.task = task
        self.config = config
        self.work = Work()
        self._open_dialogue = open_dialogue
        self.speech = Speech.load(engine.info, engine.tokenizer)

    def encode(self, problem: Problem) -> list[int]:
        """Token ids of a problem's prompt."""
        messages, tools = list(self.task.prompt(problem)), list(self.task.tools(problem))
        return self.speech.asked(messages, tools)

    def spoken(self, content: str) -> tuple[list[int], bool]:
        """Token ids of a turn as the model would choose them, and whether it would close the turn itself."""
        ids = self.engine.tokenizer.encode(content, allow_special=True)
        if self.speech.call_end is not None and ids[-1:] == [self.speech.call_end]:
            return ids, False
        return [*ids, self.engine.info.eos_ids[0]], True

    def run(self, jobs: Sequence[Job]) -> list[Trajectory]:
        """Hold every conversation to its end; in the order of jobs and members."""
        open_: dict[str, _Open] = {}
        prompts = {job.group: self.encode(job.problem) for job in jobs}
        for job in jobs:
            prompt = prompts[job.group]
            for member in range(job.members):
                name = f"{job.group}.{member}"
                trajectory = Trajectory(job.problem, job.group, member, [Segment("prompt", tuple(prompt))])
                open_[name] = _Open(
                    trajectory, self._open_dialogue(job.problem, job.group), job.seed, name, list(prompt)
                )
        found = [conversation.trajectory for conversation in open_.values()]
        try:
            self._share_prompts(prompts, {job.group: job.members for job in jobs})
            self._converse(open_)
        finally:
            for conversation in open_.values():
                conversation.dialogue.close()
            for name in self.engine.sessions.names(""):
                self.engine.sessions.drop("", name)
        self.work.fresh += _fresh(found)
        return found

    def _share_prompts(self, prompts: dict[int, list[int]], members: dict[int, int]) -> None:
        """Compute what prompts have in common once, each prompt's rest once, and fork its KV to its group."""
        sessions = self.engine.sessions
        shared = _common_prefix(list(prompts.values()))
        if shared and len(prompts) > 1:
            self._compute({_SHARED: next(iter(prompts.values()))[:shared]})
            for group in prompts:
                sessions.fork("", _SHARED, f"{group}")
            sessions.drop("", _SHARED)
        self._compute({f"{group}": prompt for group, prompt in prompts.items()})
        for group in prompts:
            for member in range(members[group]):
                sessions.fork("", f"{group}", f"{group}.{member}")
            sessions.drop("", f"{group}")

    def _compute(self, prompts: dict[str, list[int]]) -> None:
        params = SamplingParams(max_tokens=0)
        requests = [Request(f"prompt {name}", tuple(ids), params, session=name) for name, ids in prompts.items()]
        for outputs in self.engine.generate(requests).values():
            self._book(outputs)

    def _converse(self, open_: dict[str, _Open]) -> None:
        asked: dict[Future[Turn], _Open] = {}
        outputs: dict[str, list[Output]] = {}
        pool = ThreadPoolExecutor(self.config.tool_threads, "world")
        try:
            for conversation in open_.values():
                self._submit(conversation)
            while self.engine.has_work or asked:
                for output in self.engine.step():
                    outputs.setdefault(output.id, []).append(output)
                    if output.finish_reason is not None:
                        conversation = open_[output.id]
                        if self._heard(conversation, outputs.pop(output.id)):
                            asked[pool.submit(conversation.dialogue.reply, conversation.text)] = conversation
                if asked:
                    busy = self.engine.has_work
                    done, _ = wait(asked, 0 if busy else self.config.patience, FIRST_COMPLETED)
                    if not done and not busy:
                        self._abandon(asked)
                    for future in sorted(done, key=lambda future: asked[future].name):
                        self._answered(asked.pop(future), future)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _submit(self, conversation: _Open) -> None:
        room = self.engine.info.max_model_len - len(conversation.tokens)
        params = SamplingParams(
            max_tokens=min(self.config.turn_tokens, room),
            temperature=self.config.temperature,
            seed=conversation.seed,
            logprobs=0,
            stop_token_ids=() if self.speech.call_end is None else (self.speech.call_end,),
            show_special=None,
        )
        trajectory = conversation.trajectory
        self.engine.submit(
            Request(
                conversation.name,
                tuple(conversation.tokens),
                params,
                index=trajectory.member,
                session=conversation.name,
            )
        )

    def _book(self, outputs: list[Output]) -> None:
        usage = outputs[-1].usage
        assert usage is not None
        self.work.computed += usage.prompt_tokens - usage.cached_tokens
        self.work.generated += usage.completion_tokens

    def _heard(self, conversation: _Open, outputs: list[Output]) -> bool:
        """Take a finished turn of the model into its conversation; True if the world is to answer it."""
        self._book(outputs)
        tokens = tuple(token for output in outputs for token in output.tokens)
        greedy = self.config.temperature == 0
        logprobs = tuple(
            value
            for output in outputs
            for value in ([p.logprob for p in output.logprobs] if greedy else output.sampled_logprobs)
        )
        trajectory = conversation.trajectory
        trajectory.segments.append(Segment("model", tokens, logprobs, self.engine.version))
        conversation.tokens += tokens
        if outputs[-1].finish_reason == "length":
            trajectory.stop("length", "the turn ran out of tokens")
            return False
        conversation.text = self.speech.heard(tokens)
        return True

    def _answered(self, conversation: _Open, future: Future[Turn]) -> None:
        """Take what the world said; the model goes on, or the conversation is over."""
        trajectory = conversation.trajectory
        try:
            turn = future.result()
        except Exception as error:  # noqa: BLE001 - anybody's environment; its failure must not become a reward
            _log.warning("the world of %s raised %s: %s", conversation.name, type(error).__name__, error)
            turn = Turn(faults=("world_error",))
        trajectory.faults += turn.faults
        if turn.content is None:
            conversation.dialogue.close()
            trajectory.verdict = turn.verdict
            trajectory.end = "answer" if turn.verdict is not None else "lost"
            return
        said = tuple(self.speech.said(turn.content, turn.role, self.speech.ended(conversation.tokens)))
        if trajectory.turns >= self.config.turns:
            trajectory.stop("turns", f"no answer within {self.config.turns} turns")
            return
        if len(conversation.tokens) + len(said) + 1 > self.engine.info.max_model_len:
            trajectory.stop("length", "the context is full")
            return
        trajectory.segments.append(Segment("world", said))
        conversation.tokens += said
        self._submit(conversation)

    def _abandon(self, asked: dict[Future[Turn], _Open]) -> None:
        for future, conversation in asked.items():
            future.cancel()
            _log.warning("the world of %s did not answer within %.0f s", conversation.name, self.config.patience)
            conversation.trajectory.end = "lost"
            conversation.trajectory.faults.append("world_silent")
        asked.clear()


def _fresh(trajectories: Sequence[Trajectory]) -> int:
    """The least number of tokens of prompts and replies that had to be computed."""
    prompts = sorted({trajectory.segments[0].tokens for trajectory in trajectories})
    # Sorted, each shares its longest known beginning with the one before it.
    total = sum(len(prompt) - (_common(prompt, prompts[i - 1]) if i else 0) for i, prompt in enumerate(prompts))
    said = (segment for trajectory in trajectories for segment in trajectory.segments if segment.role == "world")
    return total + sum(len(segment.tokens) + 1 for segment in said)


def _common_prefix(rows: Sequence[Sequence[int]]) -> int:
    return min((_common(rows[0], row) for row in rows[1:]), default=0)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
