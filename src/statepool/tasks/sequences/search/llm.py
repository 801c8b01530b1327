"""A language model as a search: it proposes codes, or writes programs that search, and is told what they were worth.

A conversation starts from the best of some random codes. Each turn the model answers with codes, or with a program in
Python that prints codes; the program runs where the caller says (a sandbox, under a budget of processor seconds). What
comes out is parsed as text and judged here by the objective: nothing that the model or its program claims is believed.
"""

from __future__ import annotations

import json
import re
import urllib.error
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from statepool.core.errors import ContextLengthExceeded, InvalidRequest, Unavailable
from statepool.tasks.sequences.objectives import Objective
from statepool.tasks.sequences.search.base import Batch, phases_of, rng
from statepool.web import open_url

__all__ = ["Llm", "chat", "codes_in"]

Ask = Callable[[Sequence[dict[str, str]], int], str]
"""The answer to messages, for a seed."""
Run = Callable[[str], str]
"""What a program printed, and how it failed if it did."""

TURNS = 6
_RANDOM, _MOST_CODES, _MOST_TEXT = 64, 4096, 4000
_MOST_TOKENS, _PATIENCE = 2048, 600.0
_PROGRAM = re.compile(r"```(?:python|py)?\s*\n(.*?)```", re.DOTALL)


def chat(url: str, model: str | None = None) -> Ask:
    """A model behind an OpenAI-compatible server, such as ``http://127.0.0.1:8000/v1`` of ``statepool serve``.

    Raises (when asked):
        ContextLengthExceeded: The messages do not fit the model's context.
        Unavailable: The server cannot be reached, refuses, or answers with something other than a chat completion.
    """
    if not url.startswith(("http://", "https://")):
        raise InvalidRequest(f"url: must begin with http:// or https://, not '{url}'", param="url")

    def ask(messages: Sequence[dict[str, str]], seed: int) -> str:
        body: dict[str, Any] = {"messages": list(messages), "seed": seed, "max_tokens": _MOST_TOKENS}
        if model is not None:
            body["model"] = model
        try:
            with open_url(url, "/chat/completions", json.dumps(body).encode(), timeout_s=_PATIENCE) as reply:
                return str(json.load(reply)["choices"][0]["message"]["content"] or "")
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")[:500]
            if ContextLengthExceeded.code in said:
                raise ContextLengthExceeded(f"n: the question does not fit the model's context: {said}") from error
            raise Unavailable(f"url: {url} refused with {error.code}: {said}", param="url") from error
        except OSError as error:
            raise Unavailable(f"url: {url} gave no answer ({error}); is a model served there?", param="url") from error
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise Unavailable(
                f"url: {url} answered with something other than a chat completion", param="url"
            ) from error

    return ask


def codes_in(text: str, codes: int, n: int) -> np.ndarray:
    """int8 [found, codes, n]: every run of + and - that has n symbols, taken in order in sets of ``codes``."""
    found = [part for part in re.findall(r"[+-]+", text) if len(part) == n][: _MOST_CODES * codes]
    whole = len(found) - len(found) % codes
    signs = [[1 if symbol == "+" else -1 for symbol in part] for part in found[:whole]]
    return np.array(signs, np.int8).reshape(-1, codes, n)


class Llm:
    """The searcher.

    Args:
        ask: the model.
        run: runs a program; None: only codes are taken, and the model is told so.
    """

    name, alphabet = "llm", 2

    def __init__(self, ask: Ask, run: Run | None = None) -> None:
        self.ask, self.run = ask, run

    def batches(self, objective: Objective, n: int, seed: int, first: int) -> Iterator[Batch]:
        """A round is one turn; every six turns a conversation begins anew.

        A search that goes on in the middle of a conversation repeats it from its first turn: it is in memory. One that
        outgrows the model's context begins anew from the best so far.

        Raises:
            InvalidRequest: A code has fewer than 2 symbols.
            ContextLengthExceeded: Not even the question fits.
            Unavailable: The model gives no answer.
        """
        if n < 2:
            raise InvalidRequest(f"n: must be at least 2, not {n}", param="n")
        number = first - first % TURNS
        while True:
            if number % TURNS == 0:
                drawn = rng(seed, number).choice(np.array([-1, 1], np.int8), (_RANDOM, objective.codes, n))
                costs = objective.costs(drawn)
                best, cost, evaluations = drawn[costs.argmin()], float(costs.min()), _RANDOM
                messages = [{"role": "user", "content": self._question(objective, n, best, cost)}]
            noise = seed * 1_000_003 + number
            try:
                answer = self.ask(messages, noise)
            except ContextLengthExceeded:  # forget what was said, keep the best
                messages = [{"role": "user", "content": self._question(objective, n, best, cost)}]
                answer = self.ask(messages, noise)
            output, told = self._output(answer)
            made = codes_in(output, objective.codes, n)
            if len(made):
                costs = objective.costs(made)
                evaluations += len(made)
                place = int(costs.argmin())
                told += f" {len(made)} candidates, the best one costs {costs[place]:.9g}."
                if costs[place] < cost:
                    best, cost = made[place], float(costs[place])
            else:
                told += f" There was no code of {n} symbols + and - in it."
            told += f" The best so far costs {cost:.9g}: {_text(best)}. Go on."
            messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": told}]
            if number >= first:
                yield Batch(number, 1, phases_of(best), cost, evaluations)
                evaluations = 0
            number += 1

    def _output(self, answer: str) -> tuple[str, str]:
        """The text that codes are taken from, and what the model is told about how it came to be."""
        program = _PROGRAM.search(answer)
        if program is None:
            return answer, "Your answer was read as codes."
        if self.run is None:
            return "", "Programs cannot be run here: answer with codes."
        output = self.run(program[1])
        return output, f"Your program ran and printed, at its end: {output[-_MOST_TEXT:]!r}."

    def _question(self, objective: Objective, n: int, best: np.ndarray, cost: float) -> str:
        about = " ".join((type(objective).__doc__ or objective.name).split())
        each = f"{objective.codes} codes" if objective.codes > 1 else "a code"
        program = (
            " Or answer with one program in a ```python block that searches for a while and prints the best it finds, "
            "such codes and nothing else; NumPy is there." if self.run is not None else ""
        )  # fmt: skip
        return (
            f"Find {each} of {n} symbols, each written with + and - on a line of its own, with a low cost. The cost "
            f"{'is minus' if objective.better == 'higher' else 'follows'} this objective: {about} "
            f"The best so far costs {cost:.9g}: {_text(best)}. Answer with codes.{program}"
        )


def _text(codes: np.ndarray) -> str:
    return " ".join("".join("+" if sign > 0 else "-" for sign in row) for row in codes)
