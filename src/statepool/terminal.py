"""A conversation in the terminal, with a model in this process or behind an OpenAI-compatible server."""

from __future__ import annotations

import json
import time
import urllib.error
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from statepool.core.errors import InvalidRequest, StatepoolError, Unavailable
from statepool.engine.engine import Engine
from statepool.engine.request import Request, SamplingParams
from statepool.engine.text.template import ChatTemplate
from statepool.web import open_url

__all__ = ["Chat", "LocalModel", "Message", "Model", "RemoteModel", "Reply"]

Message = dict[str, str]
_HELP = "/reset forgets the conversation, /system TEXT sets a system message, /quit leaves; Ctrl-C stops a reply"


@dataclass(slots=True)
class Reply:
    """What is known of one reply once it ended."""

    text: str = ""
    completion_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0


class Model(Protocol):
    """Something that answers a conversation piece by piece and fills ``reply`` as it goes."""

    name: str

    def stream(self, messages: list[Message], reply: Reply) -> Iterator[str]:
        """Yield pieces of the answer to ``messages``; closing the iterator stops the model."""


class LocalModel:
    """An engine in this process."""

    def __init__(self, engine: Engine, params: SamplingParams) -> None:
        self.name = engine.info.id
        self._engine = engine
        self._params = params
        self._template = ChatTemplate.load(engine.info.path)
        self._turn = 0

    def stream(self, messages: list[Message], reply: Reply) -> Iterator[str]:
        """See ``Model``.

        Raises:
            InvalidRequest: the conversation does not fit the template or the context.
        """
        self._turn += 1
        request = Request(
            f"chat-{self._turn}", tuple(self._template.encode(self._engine.tokenizer, messages)), self._params
        )
        self._engine.submit(request)
        try:
            while True:
                for output in self._engine.step():
                    if output.text:
                        yield output.text
                    if output.usage is not None:
                        reply.completion_tokens = output.usage.completion_tokens
                        reply.prompt_tokens = output.usage.prompt_tokens
                        reply.cached_tokens = output.usage.cached_tokens
                    if output.finish_reason is not None:
                        return
        finally:
            self._engine.abort(request.id)


class RemoteModel:
    """A server that speaks the chat API of OpenAI.

    Raises:
        InvalidConfig: ``url`` is no address. Unavailable: nothing answers there.
    """

    def __init__(self, url: str, params: SamplingParams, model: str | None = None, api_key: str | None = None) -> None:
        self._url = url.rstrip("/").removesuffix("/v1") + "/v1"
        self._api_key = api_key
        self._params = params
        self.name = model or self._first_model()

    def _open(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        try:
            return open_url(self._url, path, data, api_key=self._api_key, timeout_s=600)
        except urllib.error.HTTPError as error:
            with error:
                raise InvalidRequest(_error_message(error.read(), error.code)) from None
        except OSError as error:
            raise Unavailable(f"no answer from {self._url}: {error}; is `statepool serve` running?") from None

    def _first_model(self) -> str:
        with self._open("/models") as answer:
            return str(json.load(answer)["data"][0]["id"])

    def stream(self, messages: list[Message], reply: Reply) -> Iterator[str]:
        """See ``Model``."""
        body: dict[str, Any] = {
            "model": self.name,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": self._params.max_tokens,
            "temperature": self._params.temperature,
            "top_p": self._params.top_p,
        }
        if self._params.seed is not None:
            body["seed"] = self._params.seed
        with self._open("/chat/completions", body) as answer:
            for line in answer:
                event = line.decode().strip().removeprefix("data:").strip()
                if not event or event == "[DONE]" or not event.startswith("{"):
                    continue
                chunk = json.loads(event)
                if "error" in chunk:
                    raise Unavailable(str(chunk["error"].get("message", chunk["error"])))
                for choice in chunk.get("choices", ()):
                    if piece := choice["delta"].get("content"):
                        yield piece
                if usage := chunk.get("usage"):
                    reply.completion_tokens = usage["completion_tokens"]
                    reply.prompt_tokens = usage["prompt_tokens"]
                    reply.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0


def _error_message(body: bytes, status: int) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered {status}"


@dataclass(slots=True)
class Chat:
    """The loop that reads lines and shows replies.

    ``read`` returns the next line or raises EOFError; ``write`` shows text, ``note`` a line about the reply.
    """

    model: Model
    read: Callable[[], str]
    write: Callable[[str], None]
    note: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    messages: list[Message] = field(default_factory=list)

    def run(self) -> None:
        """Talk until the input ends or /quit."""
        self.note(f"{self.model.name}: {_HELP}")
        while True:
            try:
                line = self.read().strip()
            except (EOFError, KeyboardInterrupt):
                return
            if line == "/quit":
                return
            if line.startswith("/"):
                self._command(line)
            elif line:
                self._turn(line)

    def _command(self, line: str) -> None:
        name, _, text = line.partition(" ")
        if name == "/reset":
            self.messages.clear()
            self.note("forgotten")
        elif name == "/system" and text:
            self.messages[:] = [{"role": "system", "content": text}]
            self.note("forgotten, with a new system message")
        else:
            self.note(_HELP)

    def _turn(self, line: str) -> None:
        self.messages.append({"role": "user", "content": line})
        reply = Reply()
        started = self.clock()
        first: float | None = None
        stream = self.model.stream(list(self.messages), reply)
        try:
            for piece in stream:
                first = first or self.clock()
                reply.text += piece
                self.write(piece)
        except KeyboardInterrupt:
            self.note("stopped")
        except StatepoolError as error:
            self.messages.pop()
            self.note(f"error: {error.message}")
            return
        finally:
            stream.close()  # type: ignore[attr-defined]
        self.write("\n")
        self.messages.append({"role": "assistant", "content": reply.text})
        if first is not None and reply.completion_tokens:
            span = self.clock() - first
            rate = f"{(reply.completion_tokens - 1) / span:.0f} tokens/s, " if span > 0 else ""
            self.note(
                f"first text after {1000 * (first - started):.0f} ms, {rate}"
                f"{reply.cached_tokens} of {reply.prompt_tokens} prompt tokens cached"
            )
