"""One request inside the engine: its tokens, its blocks, and what turns tokens into text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from statepool.engine.batch import Context
from statepool.engine.request import FinishReason, Output, Request, TokenLogprob, Usage
from statepool.engine.sampler import Sampled, Sampler
from statepool.engine.speculate import NgramDrafter
from statepool.engine.text.detokenize import Detokenizer
from statepool.engine.text.stop import StopMatcher
from statepool.kv import BlockTable

if TYPE_CHECKING:
    from statepool.engine.text.grammar import Grammar
    from statepool.engine.transfer import State


@dataclass(slots=True)
class Sequence:
    """Mutable state of one request. Only the engine's thread touches it.

    ``tokens`` is prompt plus accepted output; the KV of the first ``computed`` of them is in the blocks.
    """

    request: Request
    arrival: int
    root: bytes
    """Root of this sequence's block keys: fingerprint, layout and salt."""
    limit: int
    """Most tokens, prompt included."""
    sampler: Sampler
    detokenizer: Detokenizer
    stop: StopMatcher
    eos: frozenset[int]
    grammar: Grammar | None = None
    drafter: NgramDrafter | None = None
    context: Context = field(default_factory=lambda: Context(0))
    """What sparse attention knows and keeps of it."""
    sketch: Context = field(default_factory=lambda: Context(0))
    """The same for whoever drafts with sparse attention."""
    tokens: list[int] = field(default_factory=list)
    drafts: list[int] = field(default_factory=list)
    branches: list[list[int]] = field(default_factory=list)
    """Other guesses than ``drafts``."""
    fresh: int = 0
    """Tokens chosen in the step under way."""
    reached: int = 0
    """Tokens whose KV a branch that won has computed; 0 if none has."""
    computed: int = 0
    furthest: int = 0
    """Most tokens ever computed; computing below it again is waste and counted."""
    table: BlockTable = field(default_factory=BlockTable)
    keys: list[bytes] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=lambda: [None])
    embedding: npt.NDArray[np.float64] | None = None
    """Running sum of final hidden states, for requests that want that and no token."""
    resumes: bool = False
    """Its KV will come from its session, not from the prefix index."""
    looked_up: bool = False
    """The shared pool has been asked for its prefix."""
    moved: State | None = None
    """It came from another engine, and not all of its KV is here yet."""
    stale: bool = False
    """Part of its KV was computed under older weights, so none of it may be shared."""
    started: bool = False
    """Some output has been handed out."""
    admitted: bool = False
    """It ran before; what it finds cached now it had computed itself."""
    cached_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    finish: FinishReason | None = None
    stop_reason: int | str | None = None
    _text: str = ""
    _unread: list[int] = field(default_factory=list)
    """Tokens whose text nobody needed yet: those of a step are decoded together, unless stop strings look for each."""
    _sampled: list[Sampled] = field(default_factory=list)
    """What came since the last output."""
    prompt_len: int = field(init=False)

    def __post_init__(self) -> None:
        self.prompt_len = len(self.request.prompt)

    @property
    def exact(self) -> int:
        """Leading tokens whose attention reads every key."""
        return self.context.exact

    @property
    def generated(self) -> int:
        """Tokens of the output so far."""
        return len(self.tokens) - self.prompt_len

    @property
    def total(self) -> int:
        """Tokens to be in the cache before the next token can be chosen, drafts included."""
        return len(self.tokens) + len(self.drafts)

    @property
    def scoring(self) -> bool:
        """Whether every prompt position's logits are needed, so that no prefix may be skipped."""
        if self.embedding is not None:
            return self.computed < self.prompt_len
        return self.request.params.prompt_logprobs is not None and len(self.prompt_logprobs) < self.prompt_len

    def slice(self, start: int, stop: int) -> list[int]:
        """Tokens ``start`` to ``stop``, drafts included."""
        if stop <= len(self.tokens):
            return self.tokens[start:stop]
        return (self.tokens[start:] + self.drafts)[: stop - start]

    def first_row(self) -> int:
        """First position whose logits are needed."""
        return 0 if self.scoring else len(self.tokens) - 1

    def mask(self) -> npt.NDArray[np.uint32] | None:
        """Grammar bitmask for the next token."""
        return None if self.grammar is None else self.grammar.mask(self.limit - len(self.tokens))

    def admits(self, token: int) -> bool:
        """Take ``token`` into the grammar. False if nothing short enough closes the text after it: choose again."""
        return self.grammar is None or self.grammar.accept(token, self.limit - len(self.tokens))

    def append(self, sampled: Sampled) -> None:
        """Make a sampled and admitted token part of the sequence and find out whether it ends it."""
        token, params = sampled.token, self.request.params
        self.tokens.append(token)
        self.sampler.accept(token)
        self._sampled.append(sampled)
        ends = token in params.stop_token_ids or (token in self.eos and not params.ignore_eos)
        if ends and self.generated >= params.min_tokens:
            self.finish = "stop"
            self.stop_reason = token if token in params.stop_token_ids else None
            return
        self._unread.append(token)
        matched = self._decode() if params.stop else None
        if matched is not None and self.generated >= params.min_tokens:
            self.finish, self.stop_reason = "stop", matched
        elif self.grammar is not None and self.grammar.done:
            self.finish = "stop"
        elif len(self.tokens) >= self.limit:
            self.finish = "stop" if self.grammar is not None and self.grammar.accepting else "length"

    def output(self) -> Output | None:
        """What came since the last call, or None."""
        sampled, finish, params = self._sampled, self.finish, self.request.params
        if not sampled and finish is None:
            return None
        self._decode()
        if finish is not None and self.stop.matched is None:
            # No stop string cut the text: what was held back belongs to it.
            self._text += self.stop.push(self.detokenizer.finish())[0] + self.stop.finish()
        told = [] if params.logprobs is None else sampled
        out = Output(
            self.request.id,
            tuple([s.token for s in sampled]),
            self._text,
            tuple([TokenLogprob(s.token, s.logprob, s.top) for s in told]),
            tuple([s.sampled_logprob for s in told]),
            tuple(self.prompt_logprobs) if params.prompt_logprobs is not None and not self.started else None,
            finish,
            self.stop_reason,
            usage=self.usage() if finish is not None else None,
            seed=self.sampler.seed if finish is not None else None,
            embedding=self._mean() if finish is not None and self.embedding is not None else None,
        )
        self.started = True
        self.discard()
        return out

    def _mean(self) -> tuple[float, ...]:
        mean = np.asarray(self.embedding) / self.prompt_len
        return tuple((mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(np.float32).tolist())

    def discard(self) -> None:
        """Forget what ``output`` would return: it was handed out before this sequence moved here."""
        self._decode()
        self._text, self._sampled = "", []

    def _decode(self) -> str | None:
        """Turn what is unread into text; the stop string in it, if there is one."""
        if not self._unread:
            return None
        emitted, matched = self.stop.push(self.detokenizer.push(self._unread))
        self._unread = []
        self._text += emitted
        return matched

    def usage(self) -> Usage:
        """Token counts so far."""
        return Usage(self.prompt_len, self.generated, self.cached_tokens, self.draft_tokens, self.accepted_tokens)
