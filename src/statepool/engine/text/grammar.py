"""Output that must follow a grammar, and always ends within its budget.

llguidance says which tokens may come next; this module adds the budget. A grammar always holds an *ending*: bytes
that the grammar accepted as a way to finish from here. A token is accepted only if an ending that
fits the rest of the budget is known after it, so the text can always be closed.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from llguidance import LLMatcher

from statepool.core.errors import InvalidRequest
from statepool.engine.request import GrammarSpec
from statepool.engine.text.closing import JsonPosition, Pieces, json_ending, shortest
from statepool.engine.text.minimal import MinimalDocuments
from statepool.engine.text.spelling import Ending, Spelling
from statepool.engine.text.tokenizer import Tokenizer

FIELD = "response_format"
MAX_BODY = 1 << 20
"""Longest grammar accepted, in characters."""

_ONE_SPACE = {"whitespace_flexible": True, "whitespace_pattern": r"[ \n]"}
_NO_SPACE = {"whitespace_flexible": False}
_CACHED = 64
_SUFFIXES = 8


@dataclass(frozen=True, slots=True)
class _Compiled:
    """What all requests with one spec share. ``pieces`` is None for grammars that are not JSON."""

    matcher: LLMatcher
    pieces: Pieces | None
    ending: Ending


class GrammarCompiler:
    """Compiles specs for one tokenizer and keeps the recent ones."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int | None = None) -> None:
        """``vocab_size`` is the width of the logits, if it is larger than the tokenizer's.

        Raises:
            InvalidCheckpoint: the tokenizer has no end token.
        """
        self.spelling = Spelling(tokenizer, vocab_size)
        self._cache: OrderedDict[GrammarSpec, _Compiled] = OrderedDict()

    def compile(self, spec: GrammarSpec) -> Grammar:
        """A fresh grammar at its start; compiling is done once per spec.

        Raises:
            InvalidRequest: with ``param="response_format"`` for a spec that cannot be read, uses
                what is not supported, or that no text satisfies.
        """
        found = self._cache.get(spec)
        if found is None:
            found = self._cache[spec] = self._compile(spec)
            if len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        self._cache.move_to_end(spec)
        return Grammar(found.matcher.deep_copy(), self.spelling, found.pieces, found.ending)

    def check(self, spec: GrammarSpec, max_tokens: int) -> int:
        """The fewest tokens a text of ``spec`` was found to need.

        Raises:
            InvalidRequest: as ``compile``, or with ``param="max_tokens"`` if that is more than ``max_tokens``.
        """
        least = self.compile(spec).min_close()
        if least > max_tokens:
            raise InvalidRequest(
                f"max_tokens is {max_tokens}, but the shortest text that fits {FIELD} has {least} tokens",
                param="max_tokens",
            )
        return least

    def _compile(self, spec: GrammarSpec) -> _Compiled:
        if len(spec.body) > MAX_BODY:
            raise InvalidRequest(f"{FIELD} is longer than {MAX_BODY} characters", param=FIELD)
        if spec.kind == "json_schema":
            return self._compile_schema(_read_schema(spec.body))
        if spec.kind == "json_object":
            return self._compile_schema({"type": "object"})
        if spec.kind == "regex":
            matcher = self._matcher(LLMatcher.grammar_from_regex(spec.body))
        else:
            matcher = self._matcher(LLMatcher.grammar_from_lark(spec.body))
        ending = shortest(matcher, self.spelling)
        return _Compiled(matcher, None, self._confirm(matcher, ending))

    def _compile_schema(self, schema: Any) -> _Compiled:
        matcher = self._matcher(_schema_grammar(schema, _ONE_SPACE))
        documents = MinimalDocuments(schema, self._shortest_leaf)
        pieces = documents.pieces()
        ending = documents.root
        if ending is None or not self.spelling.ends(matcher, ending):
            ending = json_ending(matcher, self.spelling, JsonPosition(), pieces) or shortest(matcher, self.spelling)
        return _Compiled(matcher, pieces, self._confirm(matcher, ending))

    def _shortest_leaf(self, schema: Any) -> bytes | None:
        matcher = LLMatcher(self.spelling.backend, _schema_grammar(schema, _NO_SPACE))
        return None if matcher.is_error() else shortest(matcher, self.spelling)

    def _matcher(self, grammar: str) -> LLMatcher:
        matcher = LLMatcher(self.spelling.backend, grammar, log_level=0)
        if matcher.is_error():
            reason = matcher.get_error().strip().split("\n")[0][:300]
            raise InvalidRequest(f"{FIELD} is not supported or cannot be satisfied: {reason}", param=FIELD)
        return matcher

    def _confirm(self, matcher: LLMatcher, ending: bytes | None) -> Ending:
        if ending is None or not self.spelling.ends(matcher, ending):
            raise InvalidRequest(f"{FIELD}: no text that satisfies it was found", param=FIELD)
        found = Ending(ending)
        if found.tokens(self.spelling) < 0:
            raise InvalidRequest(f"{FIELD} needs bytes the tokenizer cannot write", param=FIELD)
        return found


@dataclass(frozen=True, slots=True)
class _Step:
    """What ``rollback`` restores."""

    ending: Ending
    position: JsonPosition
    done: bool


class Grammar:
    """One text being written. Its state is a function of the accepted tokens and their ``remaining``.

    The loop of an engine, with ``remaining`` tokens left of the budget::

        mask = grammar.mask(remaining)
        token = sample(logits, mask)
        while not grammar.accept(token, remaining):   # rare: nothing short enough would close it
            token = sample(logits, grammar.mask(remaining))

    If ``remaining >= min_close()`` holds at the start, it holds after every step.
    """

    def __init__(self, matcher: LLMatcher, spelling: Spelling, pieces: Pieces | None, ending: Ending) -> None:
        """Use ``GrammarCompiler.compile``. ``ending`` must end the text from the matcher's state."""
        self._matcher = matcher
        self._spelling = spelling
        self._pieces = pieces
        self._ending = ending
        self._position = JsonPosition()
        self._history: list[_Step] = []
        self._refused: list[int] = []
        self._remaining: int | None = None
        self.done = False
        """Nothing can follow: the text is complete, or the end token was accepted."""

    @property
    def accepting(self) -> bool:
        """Whether the text may end here; it may also go on unless ``done``."""
        return self.done or not self._ending.data

    def min_close(self) -> int:
        """Tokens the known ending takes from here, without an end token; 0 when ``accepting``."""
        return 0 if self.done else self._ending.tokens(self._spelling)

    def mask(self, remaining: int) -> np.ndarray | None:
        """Tokens that may come next: uint32 ``[(V+31)//32]``, bit ``i & 31`` of word ``i >> 5``; None when ``done``.

        ``remaining`` counts the tokens left in the budget, this one included. With at most
        ``min_close() + 1`` left, only tokens on the way to the known ending are allowed. Tokens that ``accept``
        has refused here are not.
        """
        if self.done:
            return None
        self._remaining = remaining
        if len(self._ending.data) + 1 >= remaining and self.min_close() + 1 >= remaining:
            return self._spelling.mask_of(self._way_out(remaining))
        mask = self._spelling.mask(self._matcher)
        if self._refused:
            mask &= ~self._spelling.mask_of(self._refused)
            if not mask.any():
                return self._spelling.mask_of(self._way_out(remaining))
        return mask

    def accept(self, token: int, remaining: int | None = None) -> bool:
        """Append ``token``. False, with nothing changed, if the grammar forbids it or no ending fits after it.

        ``remaining`` is that of ``mask``, and defaults to that of the last ``mask`` call; give it
        when tokens are replayed without masks, so that the state comes out the same.
        """
        remaining = self._remaining if remaining is None else remaining
        before = _Step(self._ending, self._position, self.done)
        if self.done or self._matcher.validate_tokens([token]) != 1:
            return False
        self._matcher.consume_token(token)
        if token in self._spelling.eos_ids:
            self._advance(before, Ending(b""), self._position, done=True)
            return True
        data = self._spelling.tokens[token]
        position = self._position if self._pieces is None else self._position.after(data)
        ending = self._ending_after(data, position, None if remaining is None else remaining - 1)
        if ending is None:
            self._matcher.rollback(1)
            self._refused.append(token)
            return False
        self._advance(before, ending, position, done=self._matcher.is_stopped())
        return True

    def rollback(self, count: int) -> None:
        """Take back the last ``count`` accepted tokens.

        Raises:
            ValueError: fewer tokens were accepted.
        """
        if not 0 <= count <= len(self._history):
            raise ValueError(f"cannot take back {count} of {len(self._history)} tokens")
        if count:
            self._matcher.rollback(count)
            step = self._history[-count]
            del self._history[-count:]
            self._ending, self._position, self.done = step.ending, step.position, step.done
            self._forget()

    def forced(self) -> list[int]:
        """Tokens that must come next, in the tokenizer's own spelling; may be empty. Not yet accepted."""
        return [] if self.done else list(self._matcher.compute_ff_tokens())

    def _advance(self, before: _Step, ending: Ending, position: JsonPosition, done: bool) -> None:
        self._history.append(before)
        self._ending, self._position, self.done = ending, position, done
        self._forget()

    def _forget(self) -> None:
        self._refused = []
        self._remaining = None

    def _way_out(self, remaining: int) -> list[int]:
        if not self._ending.data:
            return list(self._spelling.eos_ids)
        return self._spelling.on_path(self._ending, max(remaining, self.min_close()))

    def _ending_after(self, data: bytes, position: JsonPosition, budget: int | None) -> Ending | None:
        """An ending from the matcher's state, after ``data``, that takes at most ``budget`` tokens."""
        tracked = self._track(data)
        if tracked is not None and (
            budget is None or len(tracked.data) + 1 < budget or 0 <= tracked.tokens(self._spelling) < budget - 1
        ):
            return tracked
        found = self._search(position)
        known = [tracked] if tracked is not None else []
        if found is not None and self._spelling.ends(self._matcher, found):
            known.append(Ending(found))
        costs = [ending.tokens(self._spelling) for ending in known]
        fitting = [i for i, cost in enumerate(costs) if cost >= 0 and (budget is None or cost <= budget)]
        return known[min(fitting, key=lambda i: costs[i])] if fitting else None

    def _track(self, data: bytes) -> Ending | None:
        """The old ending or what is left of it, if it still ends the text."""
        ending = self._ending
        if ending.data.startswith(data):
            return ending.after(len(data))
        for skip in range(min(_SUFFIXES, len(ending.data)) + 1):
            if self._spelling.ends(self._matcher, ending.data[skip:]):
                return ending.after(skip)
        return None

    def _search(self, position: JsonPosition) -> bytes | None:
        if self._pieces is not None:
            found = json_ending(self._matcher, self._spelling, position, self._pieces)
            if found is not None:
                return found
        return shortest(self._matcher, self._spelling, limit=max(64, 4 * len(self._ending.data)))


def _read_schema(body: str) -> Any:
    try:
        schema = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{FIELD}: the schema is not JSON ({error})", param=FIELD) from error
    if not isinstance(schema, dict | bool):
        raise InvalidRequest(f"{FIELD}: a schema must be an object", param=FIELD)
    return schema


def _schema_grammar(schema: Any, options: dict[str, Any]) -> str:
    text = json.dumps(schema, ensure_ascii=False)
    return str(LLMatcher.grammar_from_json_schema(text, overrides=options))  # type: ignore[arg-type]
