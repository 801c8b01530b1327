"""Drafts inside an engine: trees of the groups that run here, fed by own steps at once and by siblings elsewhere soon.

How many draft tokens a step verifies is chosen anew before each: all drafted tokens of the batch by falling chance, as
many as raise the tokens per second that the step is expected to give. A draft never changes a token, so neither do the
clock and the order of messages that this depends on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from statepool.rollout.budget import Calibration, StepCost, worthwhile
from statepool.rollout.draft_server import DraftClient
from statepool.rollout.instance import Task
from statepool.rollout.suffix import group_tree

__all__ = ["GroupDrafts", "Source"]

Source: TypeAlias = Literal["self", "group"]

_HEAD = 16
"""Tokens of the prompt that stand before every text, so that a response's first token has a context."""
_PROMPT = -1
_GROUPS = 512
"""Groups whose texts are kept after their last job has left."""
_TEXTS = 1000
"""Members of a group that draft and are drafted from; a tree holds no more than 1023 texts."""
_LEAST = 0.1
_ASK = 16
"""Steps without drafts after which one token each is tried."""


@dataclass(slots=True)
class _Texts:
    """One group: its tree, and the outputs that are in it."""

    tree: Any
    head: np.ndarray
    outputs: dict[int, list[int]] = field(default_factory=dict)

    def extend(self, text: int, start: int, tokens: Sequence[int]) -> None:
        """Add the tokens from ``start`` on that are not here yet; behind a gap, none."""
        known = self.outputs.get(text)
        if known is None:
            known = self.outputs[text] = []
            self.tree.append(text, self.head)
        fresh = tokens[len(known) - start :] if start <= len(known) else ()
        if fresh:
            known.extend(fresh)
            self.tree.append(text, np.array(fresh, np.int32))


@dataclass(slots=True)
class _Job:
    texts: _Texts
    group: str
    text: int
    length: int
    stop: int
    probe: bool
    chances: list[float] = field(default_factory=list)
    drafted: int = 0
    accepted: int = 0
    extra: int = 0
    """Tokens on branches in the step under way."""


class GroupDrafts:
    """Drafts for one engine; see ``instance.Drafts``.

    Args:
        source: ``self`` drafts from a response's own text and prompt, ``group`` from its siblings' as well.
        client: of the draft server; None shares nothing with other engines.
        most: draft tokens per sequence and step.
        cost: of a step of this engine.
    """

    def __init__(
        self,
        source: Source = "group",
        client: DraftClient | None = None,
        most: int = 8,
        cost: StepCost | None = None,
        paths: int = 1,
    ) -> None:
        self.source = source
        self._client = client if source == "group" else None
        self._most = (most, most)
        self._paths = paths
        self._cost = cost or StepCost()
        self._calibration = Calibration()
        self._texts: OrderedDict[str, _Texts] = OrderedDict()
        self._jobs: dict[str, _Job] = {}
        self._iteration = ""
        self._steps = 0

    def begin(self, iteration: str) -> None:
        """See ``Drafts.begin``."""
        self._iteration = iteration
        self._texts.clear()
        self._jobs.clear()

    def enter(self, task: Task) -> None:
        """See ``Drafts.enter``."""
        group, _, index = task.request.id.rpartition("/")
        if int(index) >= _TEXTS:
            return
        name = f"{self._iteration}/{task.request.id if self.source == 'self' else group}"
        texts = self._texts.get(name)
        if texts is None:
            prompt = np.array(task.request.prompt[: len(task.request.prompt) - task.history], np.int32)
            texts = self._texts[name] = _Texts(group_tree(), prompt[-_HEAD:])
            texts.tree.append(_PROMPT, prompt)
            if len(self._texts) > _GROUPS:
                self._forget()
        self._texts.move_to_end(name)
        before = task.request.prompt[len(task.request.prompt) - task.history :]
        texts.extend(int(index), 0, before + task.output)
        stop = task.history + min(task.stop, task.request.params.max_tokens)
        length = task.history + len(task.output)
        self._jobs[task.request.id] = _Job(texts, name, int(index), length, stop, task.probe)

    def gained(self, name: str, tokens: tuple[int, ...]) -> None:
        """See ``Drafts.gained``."""
        job = self._jobs.get(name)
        if job is None:
            return
        job.texts.extend(job.text, job.length, tokens)
        if self._client is not None:
            self._client.made(job.group, job.text, job.length, tokens)
        job.length += len(tokens)
        if job.chances:
            held = len(tokens) - 1
            self._calibration.observe(job.chances, held)
            job.drafted += len(job.chances) + job.extra
            job.accepted += held
            job.chances, job.extra = [], 0

    def leave(self, name: str) -> tuple[int, int]:
        """See ``Drafts.leave``."""
        job = self._jobs.pop(name, None)
        return (0, 0) if job is None else (job.drafted, job.accepted)

    def lengths(self, probe: int, rest: int, paths: int) -> None:
        """See ``Drafts.lengths``."""
        self._most = (probe, rest)
        self._paths = paths

    def draft(self, sequences: list[Any], keys: Any) -> None:
        """See ``Drafts.draft``."""
        if self._client is not None:
            self._exchange(self._client)
        found: list[tuple[Any, _Job, list[int], list[float]]] = []
        sides: list[tuple[Any, _Job, list[int], list[float]]] = []
        for sequence in sequences:
            job = self._jobs.get(sequence.request.id)
            sequence.drafts = []
            if job is None:
                continue
            room = min(self._most[not job.probe], job.stop - job.length - 1, sequence.limit - len(sequence.tokens) - 1)
            if room <= 0:
                continue
            if self._paths == 1:
                tokens, _, chances, _ = job.texts.tree.draft(job.text, room, 1, _LEAST)
                others: list[tuple[list[int], list[float]]] = []
            else:
                drafted, parents, all_chances, _ = job.texts.tree.draft(
                    job.text, room * self._paths, self._paths, _LEAST
                )
                tokens, chances, others = _paths(drafted, parents, all_chances, room)
            if tokens:
                found.append((sequence, job, tokens, self._calibration.of(chances)))
                sides += [(sequence, job, guess, self._calibration.of(likely)) for guess, likely in others]
        if not found:
            return
        lengths = worthwhile([chances for *_, chances in found], len(sequences), self._cost)
        self._steps += 1
        if self._steps % _ASK == 0 and not any(lengths):
            lengths = [1] * len(found)  # whether drafts hold is learnt from drafts alone
        for (sequence, job, tokens, chances), length in zip(found, lengths, strict=True):
            sequence.drafts = tokens[:length]
            job.chances = chances[:length]
        if sides and any(lengths):
            self._branch(found, lengths, sides, len(sequences))

    def _branch(self, found: Any, lengths: list[int], sides: Any, batch: int) -> None:
        """Add the branches that give tokens faster than the step does without them."""
        cost = self._cost
        gain = batch + sum(sum(chances[:length]) for (*_, chances), length in zip(found, lengths, strict=True))
        rate = gain / (cost.base + cost.sequence * batch + cost.row * (batch + sum(lengths)))
        for sequence, job, guess, chances in sides:
            if not sequence.drafts:
                continue
            new = next((i for i, (a, b) in enumerate(zip(guess, sequence.drafts, strict=False)) if a != b), len(guess))
            if sum(chances[new:]) > rate * cost.row * (1 + len(guess)):
                sequence.branches.append(guess)
                job.extra += len(guess)

    def _exchange(self, client: DraftClient) -> None:
        for news in client.step(self._known):
            for each in news.texts:
                texts = self._texts.get(each.group)
                if texts is not None:
                    texts.extend(each.text, each.start, each.tokens)
            for group, text, start in news.missing:
                texts = self._texts.get(group)
                known = texts.outputs.get(text, []) if texts is not None else []
                if len(known) > start:
                    client.made(group, text, start, tuple(known[start:]))

    def _known(self) -> dict[str, dict[int, int]]:
        groups = {job.group: job.texts for job in self._jobs.values()}
        return {group: {text: len(output) for text, output in texts.outputs.items()} for group, texts in groups.items()}

    def _forget(self) -> None:
        """Drop the group that was named longest ago and has no job here."""
        busy = {id(job.texts) for job in self._jobs.values()}
        for name, texts in self._texts.items():
            if id(texts) not in busy:
                del self._texts[name]
                return


def _paths(
    tokens: list[int], parents: list[int], chances: list[float], most: int
) -> tuple[list[int], list[float], list[tuple[list[int], list[float]]]]:
    """The paths of a drafted tree from its root to its leaves: the likeliest, its chances, and the others."""
    inner = set(parents)
    paths = []
    for leaf in range(len(tokens)):
        if leaf in inner:
            continue
        path, at = [], leaf
        while at >= 0:
            path.append(at)
            at = parents[at]
        path = path[::-1][:most]
        paths.append(([tokens[i] for i in path], [chances[i] for i in path]))
    if not paths:
        return [], [], []
    paths.sort(key=lambda path: -sum(path[1]))
    (first, likely), *others = paths
    return first, likely, others
