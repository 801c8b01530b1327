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
from llguidance import LLMatcher, LLTokenizer

from statepool.core.errors import InvalidRequest
from statepool.engine.request import GrammarSpec
from statepool.engine.text.closing import MAX_ENDING, JsonPosition, Pieces, byte_backend, ends, json_ending, shortest
from statepool.engine.text.minimal import MinimalDocuments
from statepool.engine.text.spelling import Ending, Spelling
from statepool.engine.text.tokenizer import Tokenizer

FIELD = "response_format"
MAX_BODY = 1 << 18
"""Longest grammar accepted, in characters."""

_ONE_SPACE = {"whitespace_flexible": True, "whitespace_pattern": r"[ \n]"}
_NO_SPACE = {"whitespace_flexible": False}
_CACHED = 64
_SUFFIXES = 8
_BLIND = 256
"""Longest document looked for without the help of the schema, in bytes."""


@dataclass(frozen=True, slots=True)
class _Compiled:
    """What all requests with one spec share. ``pieces`` is None for grammars that are not JSON."""

    tokens: LLMatcher
    by_byte: LLMatcher
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
        return Grammar(found, self.spelling)

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
        read = LLMatcher.grammar_from_regex if spec.kind == "regex" else LLMatcher.grammar_from_lark
        grammar = read(spec.body)
        by_byte = _matcher(byte_backend(), grammar)
        return self._confirmed(grammar, by_byte, None, shortest(by_byte))

    def _compile_schema(self, schema: Any) -> _Compiled:
        _refuse_counts_of_names(schema)
        grammar = _schema_grammar(schema, _ONE_SPACE)
        by_byte = _matcher(byte_backend(), grammar)
        documents = MinimalDocuments(schema, _shortest_leaf)
        pieces = documents.pieces()
        ending = documents.root
        if ending is None or not ends(by_byte, ending):
            dense = _matcher(byte_backend(), _schema_grammar(schema, _NO_SPACE))
            ending = json_ending(dense, JsonPosition(), pieces, _BLIND) or shortest(dense, limit=_BLIND)
        return self._confirmed(grammar, by_byte, pieces, ending)

    def _confirmed(self, grammar: str, by_byte: LLMatcher, pieces: Pieces | None, data: bytes | None) -> _Compiled:
        if data is None or not ends(by_byte, data):
            raise InvalidRequest(
                f"{FIELD}: no text that satisfies it was found; look for a rule that needs itself", param=FIELD
            )
        ending = Ending(data)
        if ending.tokens(self.spelling) < 0:
            raise InvalidRequest(f"{FIELD} needs bytes the tokenizer cannot write", param=FIELD)
        return _Compiled(_matcher(self.spelling.backend, grammar), by_byte, pieces, ending)


@dataclass(frozen=True, slots=True)
class _Step:
    """What ``rollback`` restores."""

    ending: Ending
    position: JsonPosition
    done: bool
    written: int
    """Bytes of the token that followed."""


class Grammar:
    """One text being written. Its state is a function of the accepted tokens and their ``remaining``.

    The loop of an engine, with ``remaining`` tokens left of the budget::

        mask = grammar.mask(remaining)
        token = sample(logits, mask)
        while not grammar.accept(token, remaining):   # rare: nothing short enough would close it
            token = sample(logits, grammar.mask(remaining))

    If ``remaining >= min_close()`` holds at the start, it holds after every step.
    """

    def __init__(self, compiled: _Compiled, spelling: Spelling) -> None:
        """Use ``GrammarCompiler.compile``."""
        self._matcher = compiled.tokens.deep_copy()
        self._by_byte = compiled.by_byte.deep_copy()
        self._spelling = spelling
        self._pieces = compiled.pieces
        self._ending = compiled.ending
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
        """Tokens the known ending takes from here, without an end token; 0 when ``accepting``.

        At the start this is the shortest text in bytes, spelled with the fewest tokens.
        """
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
            # A caller that samples again must not meet the same token.
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
        if self.done:
            return False
        if self._matcher.validate_tokens([token]) != 1:
            self._refused.append(token)
            return False
        self._matcher.consume_token(token)
        if token in self._spelling.eos_ids:
            self._advance(b"", Ending(b""), self._position, done=True)
            return True
        data = self._spelling.tokens[token]
        position = self._position if self._pieces is None else self._position.after(data)
        self._by_byte.consume_tokens(list(data))
        ending = self._ending_after(data, position, None if remaining is None else remaining - 1)
        if ending is None:
            self._matcher.rollback(1)
            self._by_byte.rollback(len(data))
            self._refused.append(token)
            return False
        self._advance(data, ending, position, done=self._matcher.is_stopped())
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
            self._by_byte.rollback(sum(step.written for step in self._history[-count:]))
            step = self._history[-count]
            del self._history[-count:]
            self._ending, self._position, self.done = step.ending, step.position, step.done
            self._forget()

    def forced(self) -> list[int]:
        """Tokens that must come next, in the tokenizer's own spelling; may be empty. Not yet accepted."""
        return [] if self.done else list(self._matcher.compute_ff_tokens())

    def _advance(self, data: bytes, ending: Ending, position: JsonPosition, done: bool) -> None:
        self._history.append(_Step(self._ending, self._position, self.done, len(data)))
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
        if found is not None and ends(self._by_byte, found):
            known.append(Ending(found))
        costs = [ending.tokens(self._spelling) for ending in known]
        fitting = [i for i, cost in enumerate(costs) if cost >= 0 and (budget is None or cost <= budget)]
        return known[min(fitting, key=lambda i: costs[i])] if fitting else None

    def _track(self, data: bytes) -> Ending | None:
        """The old ending or what is left of it, if it still ends the text."""
        ending = self._ending
        if self._by_byte.is_accepting():
            return Ending(b"")
        if ending.data.startswith(data):
            return ending.after(len(data))
        for skip in range(min(_SUFFIXES, len(ending.data)) + 1):
            if ends(self._by_byte, ending.data[skip:]):
                return ending.after(skip)
        return None

    def _search(self, position: JsonPosition) -> bytes | None:
        if self._pieces is not None:
            limit = MAX_ENDING + 2 * len(self._ending.data)
            found = json_ending(self._by_byte, position, self._pieces, limit)
            if found is not None:
                return found
        return shortest(self._by_byte, limit=64 + 2 * len(self._ending.data))


def _read_schema(body: str) -> Any:
    try:
        schema = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{FIELD}: the schema is not JSON ({error})", param=FIELD) from error
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise InvalidRequest(f"{FIELD}: a schema must be an object", param=FIELD)
    return schema


def _schema_grammar(schema: Any, options: dict[str, Any]) -> str:
    text = json.dumps(schema, ensure_ascii=False)
    return str(LLMatcher.grammar_from_json_schema(text, overrides=options))  # type: ignore[arg-type]


def _matcher(backend: LLTokenizer, grammar: str) -> LLMatcher:
    matcher = LLMatcher(backend, grammar, log_level=0)
    if matcher.is_error():
        reason = " ".join(matcher.get_error().split())[:300]
        raise InvalidRequest(f"{FIELD} is not supported or cannot be satisfied: {reason}", param=FIELD)
    return matcher


def _shortest_leaf(schema: Any) -> bytes | None:
    matcher = LLMatcher(byte_backend(), _schema_grammar(schema, _NO_SPACE), log_level=0)
    return None if matcher.is_error() else shortest(matcher)


def _refuse_counts_of_names(node: Any) -> None:
    """A grammar cannot tell that a name was written before, so it cannot count different names."""
    stack = [node]
    while stack:
        current = stack.pop()
        if isinstance(current, list):
            stack.extend(current)
        elif isinstance(current, dict):
            stack.extend(current.values())
            least, names = current.get("minProperties"), current.get("required")
            known = len(set(map(str, names))) if isinstance(names, list) else 0
            if isinstance(least, int) and least > max(1, known):
                raise InvalidRequest(
                    f"{FIELD}: minProperties {least} is not supported; name them in required", param=FIELD
                )
