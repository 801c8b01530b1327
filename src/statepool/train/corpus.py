"""Training text: conversations and copying exercises as token ids with a mask of what to learn.

A batch is a function of (seed, step), so a resumed run sees the same data as one that never stopped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from tokenizers import Tokenizer

from statepool.tasks.synthetic import FAMILIES, Episode, facts
from statepool.tasks.synthetic.echo import WORDS
from statepool.tasks.synthetic.episode import reply
from statepool.train.template import tools_block
from statepool.train.tokenizer import SPECIAL, TAGS

EMPTY_THOUGHT = "<think>\n\n</think>\n\n"


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum: sequence length, sequences per step, steps, and the mixture of document kinds.

    `rate` multiplies the learning rate, and `gain` that of the norms' weights once more.
    """

    length: int
    batch: int
    steps: int
    mixture: dict[str, float]
    gain: float = 1.0
    rate: float = 1.0


Segments = list[tuple[str, bool]]
"""Text in order; True marks what the model learns to write."""


def segments(episode: Episode, thinking: bool = True, forgotten: int = 0) -> Segments:
    """Render a conversation as the chat template does and mark the assistant's words.

    The first `forgotten` assistant turns are given without their reasoning and are not learned: that is how
    earlier turns of a conversation look to the model. Without `thinking`, turns start with an empty thought.
    """
    messages, parts = list(episode.messages), []
    if episode.tools:
        said = messages.pop(0)["content"] + "\n\n" if messages[0]["role"] == "system" else ""
        lines = [json.dumps(tool, ensure_ascii=False) for tool in episode.tools]
        parts.append(("<|im_start|>system\n" + said + tools_block(lines), False))
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "assistant":
            parts.append(("<|im_start|>assistant\n", False))
            if forgotten > 0:
                parts.append((reply(content) + "<|im_end|>", False))
            else:
                if not thinking:
                    parts.append((EMPTY_THOUGHT, False))
                parts.append((content + "<|im_end|>", True))
            parts.append(("\n", False))
            forgotten -= 1
        elif role == "tool":
            parts.append((f"<|im_start|>user\n<tool_response>\n{content}\n</tool_response><|im_end|>\n", False))
        else:
            parts.append((f"<|im_start|>{role}\n{content}<|im_end|>\n", False))
    return parts


def restated(rng: Random, size: int) -> Segments:
    """State facts, then state them all again in another order; only the values are learned."""
    known = facts.facts(rng, max(2, size // (2 * facts.TOKENS_PER_FACT + 1)))
    parts: Segments = [(" ".join(facts.sentence(key, *fact) for key, fact in known.items()) + "\n", False)]
    keys = list(known)
    rng.shuffle(keys)
    for index, key in enumerate(keys):
        parts.append(((" " if index else "") + f"The {known[key][0]} of {key} is", False))
        parts.append((f" {known[key][1]}.", True))
    return parts


def copied(rng: Random, size: int, alphabet: Sequence[int]) -> tuple[list[int], list[bool]]:
    """Random tokens of which stretches come again at random later places; the second time is learned.

    The offset is random because a fixed one teaches a position, not a search.
    """
    tokens: list[int] = []
    learn: list[bool] = []
    while len(tokens) < size:
        if len(tokens) < max(5, size // 4) or rng.random() < 0.3:
            fresh = [rng.choice(alphabet) for _ in range(rng.randint(4, max(5, size // 4)))]
            tokens += fresh
            learn += [False] * len(fresh)
        else:
            start = rng.randrange(len(tokens) - 4)
            again = tokens[start : start + rng.randint(4, max(5, size // 3))]
            tokens += again
            learn += [False] + [True] * (len(again) - 1)
    return tokens[:size], learn[:size]


def gapped(rng: Random, size: int, alphabet: Sequence[int], gap: Sequence[int]) -> tuple[list[int], list[bool]]:
    """Copying where the same few tokens stand between any two: "fox is 47" needs the word before "is" to find the 4."""
    between = list(gap) if rng.random() < 0.6 else [rng.choice(alphabet) for _ in range(rng.randint(1, 3))]
    words, learned = copied(rng, size // (len(between) + 1) + 1, alphabet)
    tokens = [token for word in words for token in (word, *between)]
    learn = [flag for kept in learned for flag in (kept, *(False for _ in between))]
    return tokens[:size], learn[:size]


class Corpus:
    """Draws documents and packs them into sequences."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.vocab = tokenizer.get_vocab_size()
        self.end = SPECIAL.index("<|endoftext|>")
        self.first = len(SPECIAL + TAGS)
        spelled = [
            tokenizer.encode(text, add_special_tokens=False).ids for text in [*"0123456789", *(" " + w for w in WORDS)]
        ]
        self.gap = tokenizer.encode(" is ", add_special_tokens=False).ids
        self.words = [ids[0] for ids in spelled if len(ids) == 1]

    def encode(self, parts: Segments) -> tuple[list[int], list[bool]]:
        """Return token ids and what to learn of them."""
        tokens: list[int] = []
        learn: list[bool] = []
        for text, learned in parts:
            ids = self.tokenizer.encode(text, add_special_tokens=False).ids
            tokens += ids
            learn += [learned] * len(ids)
        return tokens, learn

    def document(self, rng: Random, kind: str, size: int) -> tuple[list[int], list[bool]]:
        """Draw a document of about `size` tokens."""
        if kind == "copy":
            return copied(rng, size, range(self.first, self.vocab))
        if kind == "copy_words":
            return copied(rng, size, self.words)
        if kind == "gapped":
            return gapped(rng, size, self.words, self.gap)
        if kind == "restate":
            return self.encode(restated(rng, size))
        episode = FAMILIES[kind].draw(rng, size, 0)
        thinking, forgotten = episode.thinking, 0
        if kind == "sums":
            forgotten = rng.randrange(len(episode.values)) if rng.random() < 0.3 else 0
        elif rng.random() < 0.1:
            thinking = False
        return self.encode(segments(episode, thinking, forgotten))

    def sequence(self, rng: Random, length: int, mixture: dict[str, float]) -> tuple[list[int], list[bool]]:
        """Pack documents into `length` tokens; kinds whose documents could contradict each other come once."""
        weights = dict(mixture)
        tokens: list[int] = []
        learn: list[bool] = []
        while (room := length - len(tokens)) > 0:
            kind = rng.choices(list(weights), list(weights.values()))[0]
            size = room if rng.random() < 0.6 else rng.randint(min(room, 64), room)
            new, mask = self.document(rng, kind, max(size, 48))
            tokens += [*new, self.end]
            learn += [*mask, False]
            for once in {"facts": ("facts", "restate"), "restate": ("facts", "restate"), "chains": ("chains",)}.get(
                kind, ()
            ):
                if len(weights) > 1:
                    weights.pop(once, None)
        return tokens[:length], learn[:length]

    def batch(self, seed: int, step: int, stage: Stage) -> tuple[list[list[int]], list[list[bool]]]:
        """Return the sequences of one step and their masks."""
        rows = [
            self.sequence(Random(f"{seed}:{step}:{row}"), stage.length, stage.mixture) for row in range(stage.batch)
        ]
        return [row[0] for row in rows], [row[1] for row in rows]


def sample_text(seed: int, documents: int = 2000) -> list[str]:
    """Draw text of all kinds to train the tokenizer on, without tags, and every word often enough to become a token."""
    rng = Random(f"tokenizer:{seed}")
    texts = []
    for _ in range(documents):
        episode = FAMILIES[rng.choice(list(FAMILIES))].draw(rng, rng.choice((128, 256, 512)), 0)
        whole = "".join(text for text, _ in segments(episode))
        texts += re.split("|".join(map(re.escape, SPECIAL + TAGS)), whole)
    return texts + [" " + word for word in WORDS for _ in range(400)]
