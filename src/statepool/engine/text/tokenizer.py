"""The tokenizer of a checkpoint: text to ids and back, with control tokens kept apart from text."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from statepool.core.errors import InvalidCheckpoint, InvalidRequest
from statepool.engine.text.vocab import family, token_to_bytes

_ANCHOR = f"\U0010fffd{secrets.token_hex(8)}\U0010fffd"
"""Stands for "a control token came before" in the plain encoder. Drawn per process, so that no text can hold it."""


class Tokenizer:
    """Text to token ids and back.

    A *control token* is an added token that is special (``<|im_end|>``) or written like markup
    (``<think>``, ``[INST]``). Plain text never becomes one: ``encode`` parses control tokens only
    with ``allow_special=True``. ``decode`` is the concatenation of ``token_bytes`` read as UTF-8,
    with U+FFFD for what is not UTF-8, so pieces of a stream add up to the whole.
    """

    def __init__(self, backend: Backend, eos_ids: Iterable[int] = ()) -> None:
        """Wrap a ``tokenizers.Tokenizer``; ``eos_ids`` are the ids that end a generation, most usual first.

        Raises:
            InvalidCheckpoint: the decoder is neither byte-level nor sentencepiece.
        """
        backend.no_padding()
        backend.no_truncation()
        self.backend = backend
        self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys(eos_ids))
        decoder = backend.decoder
        self._family, self.drops_first_space = family(None if decoder is None else json.loads(decoder.__getstate__()))
        self.added: dict[int, AddedToken] = dict(backend.get_added_tokens_decoder())
        """Added tokens by id, control or not."""
        self.special_ids = frozenset(i for i, token in self.added.items() if token.special)
        self.control_ids = frozenset(i for i, token in self.added.items() if token.special or _markup(token.content))
        self.vocab_size = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
        """One more than the largest id. A model's embedding may be larger; ids beyond have no text."""
        self._bytes: dict[int, bytes] = {}
        self._plain: Backend | None = None
        bare = backend.encode("a", add_special_tokens=False).ids
        framed = backend.encode("a", add_special_tokens=True).ids
        start = next((i for i in range(len(framed)) if framed[i : i + len(bare)] == bare), 0)
        self._prefix, self._suffix = framed[:start], framed[start + len(bare) :]

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read ``tokenizer.json`` of a checkpoint folder, with its end ids.

        End ids come from ``generation_config.json``, ``config.json`` and ``tokenizer_config.json``, in this order.

        Raises:
            InvalidCheckpoint: a file is missing, unreadable, or of an unsupported kind.
        """
        folder = Path(path)
        try:
            backend = Backend.from_str((folder / "tokenizer.json").read_text(encoding="utf-8"))
        except OSError as error:
            raise InvalidCheckpoint(f"{folder}: tokenizer.json cannot be read ({error.strerror})") from error
        except Exception as error:  # the backend raises bare Exception for malformed files
            raise InvalidCheckpoint(f"{folder / 'tokenizer.json'} is not a tokenizer file: {error}") from error
        return cls(backend, _eos_ids(folder, backend))

    def encode(self, text: str, add_special: bool = False, allow_special: bool = False) -> list[int]:
        """Token ids of ``text``.

        ``add_special`` adds what the tokenizer puts around a sequence (often a start token);
        ``allow_special`` lets control tokens written in ``text`` be read as such, for trusted text only.

        Raises:
            InvalidRequest: ``text`` holds lone surrogates, which no UTF-8 byte sequence stands for.
        """
        check_text(text)
        ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        if not allow_special and not self.control_ids.isdisjoint(ids):
            ids = self.encode_plain(text)
        return [*self._prefix, *ids, *self._suffix] if add_special else ids

    def control_id(self, text: str) -> int | None:
        """The control token that is written ``text``, if there is one."""
        found: int | None = self.backend.token_to_id(text)
        return found if found in self.control_ids else None

    def encode_plain(self, text: str, after_control: bool = False) -> list[int]:
        """Token ids of ``text`` without any control token, whatever it spells.

        ``after_control`` says that a control token stands before, so that tokenizers which put a
        space before the first word do not do it here.
        """
        encoding = self._plain_backend().encode(_ANCHOR + text if after_control else text, add_special_tokens=False)
        ids: list[int] = []
        for token, (start, _) in zip(encoding.tokens, encoding.offsets, strict=True):
            found = self.backend.token_to_id(token)
            if token == _ANCHOR or found is None:
                continue
            if found in self.control_ids:
                # A unigram model can reach the piece itself: cut the text inside the literal.
                cut = start - (len(_ANCHOR) if after_control else 0) + 1
                return self.encode_plain(text[:cut], after_control) + self.encode_plain(text[cut:], True)
            ids.append(found)
        return ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of ``ids``; special tokens are left out unless ``skip_special`` is False.

        Raises:
            InvalidRequest: an id is negative or not below ``vocab_size``.
        """
        self.check_ids(ids)
        data = b"".join(self.token_bytes(i) for i in ids if not (skip_special and i in self.special_ids))
        text = data.decode("utf-8", errors="replace")
        return text[1:] if self.drops_first_space and text.startswith(" ") else text

    def check_ids(self, ids: Iterable[int], param: str = "prompt") -> None:
        """Raise InvalidRequest naming ``param`` unless every id is an integer in ``[0, vocab_size)``."""
        for i in ids:
            if not isinstance(i, int) or isinstance(i, bool) or not 0 <= i < self.vocab_size:
                raise InvalidRequest(
                    f"{param}: token id {i!r} is not an integer between 0 and {self.vocab_size - 1}", param=param
                )

    def token_bytes(self, token: int) -> bytes:
        """The bytes one id stands for; empty for an unused id inside the vocabulary or beyond it."""
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = self._compute_bytes(token)
        return known

    def token_text(self, token: int) -> str:
        """``token_bytes`` as text, with U+FFFD where a token is part of a code point."""
        return self.token_bytes(token).decode("utf-8", errors="replace")

    def _compute_bytes(self, token: int) -> bytes:
        if token in self.added:
            return str(self.added[token].content).encode()
        text = self.backend.id_to_token(token) if token >= 0 else None
        return b"" if text is None else token_to_bytes(text, self._family)

    def _plain_backend(self) -> Backend:
        """The same tokenizer without control tokens, built when a text first spells one."""
        if self._plain is None:
            state = json.loads(self.backend.to_str())
            state["added_tokens"] = [entry for entry in state["added_tokens"] if entry["id"] not in self.control_ids]
            state["post_processor"] = None
            plain = Backend.from_str(json.dumps(state))
            plain.add_special_tokens([AddedToken(_ANCHOR, normalized=False)])
            self._plain = plain
        return self._plain


def check_text(text: str, param: str = "prompt") -> None:
    """Raise InvalidRequest naming ``param`` if ``text`` cannot be written as UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{param} holds a lone surrogate at character {error.start}; send valid Unicode", param=param
        ) from error


def _markup(content: str) -> bool:
    return len(content) > 2 and (content[0], content[-1]) in {("<", ">"), ("[", "]")}


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``, or an empty one if there is no such file.

    Raises:
        InvalidCheckpoint: the file is not a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidCheckpoint(f"{path} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidCheckpoint(f"{path} must hold a JSON object")
    return value


def token_string(value: Any) -> str | None:
    """A special token as configs write it: a string, or an object with ``content``."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def _eos_ids(folder: Path, backend: Backend) -> list[int]:
    found: list[int] = []
    for name in ("generation_config.json", "config.json"):
        value = read_json(folder / name).get("eos_token_id")
        found.extend(i for i in (value if isinstance(value, list) else [value]) if isinstance(i, int))
    written = token_string(read_json(folder / "tokenizer_config.json").get("eos_token"))
    named = None if written is None else backend.token_to_id(written)
    return found if named is None else [*found, named]
