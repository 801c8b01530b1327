"""Responses of several turns: while a tool runs in a thread, the engines go on with everybody else.

    turn of the model ──► its end ends the chunk ──► tool or judge, in a thread ──► what it says ──► waits to be placed

The end of a chunk, a tool call and a preemption are one operation of the scheduler. The KV stays where the turn ended,
as a session of that engine, and follows the response as bytes when another engine goes on with it.

    world = World(task, model, WorldConfig())                       # anything with reply(text) -> Turn and close()
    tools = Tools(lambda group, index: world.open(problems[group]), Speech.load(engine.info, engine.tokenizer))
    done = rollout(engine, groups, tools=tools)
    done.responses[0].segments                                       # (who, tokens, logprobs) of every turn
    done.responses[0].verdict
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from statepool.core.errors import InvalidConfig
from statepool.rollout.speech import Speech
from statepool.tasks import Dialogue, Turn

__all__ = ["Conversation", "ToolThreads", "Tools"]

log = logging.getLogger("statepool.rollout")


@dataclass(frozen=True, slots=True)
class Tools:
    """The world's side of the responses of a rollout; ``rollout(..., tools=...)``.

    A turn of the model ends with its end token or with the token that ends a tool call. A response ends with a turn
    that the world has nothing to say to (``finish_reason`` "stop"; its verdict is the response's), when its turns or
    its ``max_tokens``, which count the model's tokens alone, are used up ("turns", "length"), or when the world broke
    or kept silent ("lost": no verdict, and so no reward).

    Args:
        open: the other side of a response, by its group's id and its index. Called in a thread at the end of the first
            turn.
        speech: between text and tokens.
        turns: most turns of the model.
        turn_tokens: most tokens of one turn; None: as many as the response has left.
        threads: dialogues that answer at the same time.
        patience: seconds that a dialogue may take for an answer before it counts as broken; waiting for a thread is not
            counted, unless all threads hang.

    Raises:
        InvalidConfig: a number that is not above 0.
    """

    open: Callable[[str, int], Dialogue]
    speech: Speech
    turns: int = 6
    turn_tokens: int | None = None
    threads: int = 4
    patience: float = 120.0

    def __post_init__(self) -> None:
        for name in ("turns", "turn_tokens", "threads", "patience"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidConfig(f"{name} must be above 0, got {value}", param=name)


@dataclass(slots=True)
class Conversation:
    """One response under way."""

    start: int = 0
    """The first output token of the turn under way; what the world says counts as output here."""
    turns: int = 0
    calls: list[tuple[float, float]] = field(default_factory=list)
    """When the world was asked, and when it answered."""
    dialogue: Dialogue | None = None
    begun: float | None = None
    """When a thread took up the question that is open."""


class ToolThreads:
    """Asks the world and hands over its answers. Only ``answers`` tells of them, so nothing happens in between.

    Args:
        tools: what to run.
        clock: seconds, for patience.
    """

    def __init__(self, tools: Tools, clock: Callable[[], float] = time.monotonic) -> None:
        self._tools = tools
        self._clock = clock
        self._pool = ThreadPoolExecutor(tools.threads, "world")
        self._asked: dict[Future[Turn], tuple[int, Conversation]] = {}
        self._moved = clock()
        """When a question was last asked, taken up or answered."""
        self._open: list[Conversation] = []

    @property
    def busy(self) -> bool:
        """Whether an answer is still to come."""
        return bool(self._asked)

    def ask(self, job: int, conversation: Conversation, group: str, index: int, turn: Sequence[int]) -> None:
        """Let the world of ``job`` answer a turn of the model."""
        text = self._tools.speech.heard(turn)
        conversation.turns += 1
        conversation.begun, self._moved = None, self._clock()

        def reply() -> Turn:
            conversation.begun = self._moved = self._clock()
            if conversation.dialogue is None:
                conversation.dialogue = self._tools.open(group, index)
                self._open.append(conversation)
            return conversation.dialogue.reply(text)

        self._asked[self._pool.submit(reply)] = (job, conversation)

    def answers(self, seconds: float) -> list[tuple[int, Turn]]:
        """Answers that have come, by job, waiting up to ``seconds`` for the first; silence becomes a lost turn."""
        done, _ = wait(self._asked, seconds, FIRST_COMPLETED)
        now = self._clock()
        found = []
        if done:
            self._moved = now
        for future, (job, conversation) in sorted(self._asked.items(), key=lambda entry: entry[1][0]):
            since = self._moved if conversation.begun is None else conversation.begun
            if future in done:
                turn = self._result(future, job)
            elif now - since > self._tools.patience:
                future.cancel()
                log.warning("the world of response %d did not answer within %g s", job, self._tools.patience)
                turn = Turn(faults=("world_silent",))
            else:
                continue
            del self._asked[future]
            if turn.content is None:
                self.close_one(conversation)
            found.append((job, turn))
        return found

    def close_one(self, conversation: Conversation) -> None:
        """The response is over: give back what its dialogue held."""
        if conversation.dialogue is not None:
            conversation.dialogue.close()
            conversation.dialogue = None

    def close(self) -> None:
        """Drop what is asked and close every dialogue that is open."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for conversation in self._open:
            self.close_one(conversation)

    def _result(self, future: Future[Turn], job: int) -> Turn:
        try:
            return future.result()
        except Exception as error:  # noqa: BLE001 - anybody's environment; its failure must not become a reward
            log.warning("the world of response %d raised %s: %s", job, type(error).__name__, error)
            return Turn(faults=("world_error",))
