"""Offline batches: a file of prompts in, a file of completions out, one JSON object a line.

A line of the input holds ``prompt`` (text), ``prompt_token_ids`` or ``messages``, perhaps an ``id``, and any field of
``SamplingParams``. Results are appended as they finish, one write each, so that a run that was killed loses only
what was in flight: started again it skips the ids already in the output.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from statepool.core.errors import InvalidRequest, StatepoolError
from statepool.engine.engine import Engine
from statepool.engine.llm import Completion
from statepool.engine.request import GrammarSpec, Output, Request, SamplingParams
from statepool.engine.text.template import ChatTemplate

__all__ = ["Progress", "Prompt", "finished_ids", "read_prompts", "run"]

_PARAMS = {item.name for item in fields(SamplingParams)}
_SOURCES = ("prompt", "prompt_token_ids", "messages")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One line of the input. ``fields`` are its sampling parameters as written."""

    id: str
    source: str
    content: Any
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands: prompts finished in this run, tokens generated, and prompts that were refused."""

    finished: int
    tokens: int
    refused: int


def read_prompts(path: Path) -> Iterator[Prompt]:
    """Prompts of a JSONL file, in order; a line without ``id`` gets its line number.

    Raises:
        InvalidRequest: a line is no JSON object, repeats an id, has an unknown field or not exactly one prompt.
    """
    seen: set[str] = set()
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path.name} line {number}"
            prompt = _prompt(line, number, where)
            if prompt.id in seen:
                raise InvalidRequest(f"{where}: id {prompt.id!r} appears twice", param="id")
            seen.add(prompt.id)
            yield prompt


def _prompt(line: str, number: int, where: str) -> Prompt:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"{where} is not JSON: {error}", param="prompts") from None
    if not isinstance(entry, dict):
        raise InvalidRequest(f"{where} must be an object with 'prompt' or 'messages'", param="prompts")
    present = [name for name in _SOURCES if name in entry]
    if len(present) != 1:
        raise InvalidRequest(f"{where} must have exactly one of {', '.join(_SOURCES)}", param="prompt")
    name = str(entry.pop("id", number))
    content = entry.pop(present[0])
    unknown = sorted(set(entry) - _PARAMS)
    if unknown:
        raise InvalidRequest(f"{where}: unknown field {unknown[0]!r}; known are {', '.join(sorted(_PARAMS))}")
    return Prompt(name, present[0], content, entry)


def finished_ids(path: Path) -> set[str]:
    """Ids already in an output file. A torn last line, left by a kill, is cut off first.

    Raises:
        InvalidRequest: the file holds something else than results.
    """
    if not path.exists():
        return set()
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    try:
        return {json.loads(line)["id"] for line in whole.splitlines()}
    except (ValueError, KeyError, TypeError):
        raise InvalidRequest(
            f"{str(path)!r} holds lines that are no results; name another --out", param="out"
        ) from None


def run(
    engine: Engine,
    prompts: list[Prompt],
    out: Path,
    defaults: SamplingParams,
    on_progress: Callable[[Progress], None] | None = None,
) -> Progress:
    """Complete ``prompts`` and append one line per result to ``out``, in the order they finish.

    A prompt the engine refuses gets a line with ``error`` and the run goes on. Twice ``max_seqs`` requests are kept in
    the engine: enough to fill every batch, few enough that the first results come early.
    """
    template = ChatTemplate.load(engine.info.path)
    waiting = iter(prompts)
    open_: dict[str, list[Output]] = {}
    finished = tokens = refused = 0
    descriptor = os.open(out, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        exhausted = False
        while open_ or not exhausted:
            while not exhausted and len(open_) < 2 * engine.config.max_seqs:
                prompt = next(waiting, None)
                if prompt is None:
                    exhausted = True
                    break
                try:
                    engine.submit(_request(engine, template, prompt, defaults))
                    open_[prompt.id] = []
                except StatepoolError as error:
                    refused += 1
                    _append(descriptor, {"id": prompt.id, "error": error.message})
            for output in engine.step():
                if output.id not in open_:
                    continue
                open_[output.id].append(output)
                tokens += len(output.tokens)
                if output.finish_reason is not None:
                    finished += 1
                    _append(descriptor, _result(output.id, open_.pop(output.id)))
            if on_progress is not None:
                on_progress(Progress(finished, tokens, refused))
    finally:
        os.close(descriptor)
    return Progress(finished, tokens, refused)


def _request(engine: Engine, template: ChatTemplate, prompt: Prompt, defaults: SamplingParams) -> Request:
    content = prompt.content
    if prompt.source == "messages":
        ids = template.encode(engine.tokenizer, content)
    elif prompt.source == "prompt":
        if not isinstance(content, str):
            raise InvalidRequest("prompt must be text", param="prompt")
        ids = engine.tokenizer.encode(content, add_special=True, allow_special=True)
    else:
        if not isinstance(content, list):
            raise InvalidRequest("prompt_token_ids must be a list of token ids", param="prompt_token_ids")
        ids = content
    return Request(prompt.id, tuple(ids), _params(prompt.fields, defaults))


def _params(given: dict[str, Any], defaults: SamplingParams) -> SamplingParams:
    values = dict(given)
    if "stop" in values:
        values["stop"] = tuple(_list("stop", values["stop"], str))
    if "stop_token_ids" in values:
        values["stop_token_ids"] = tuple(_list("stop_token_ids", values["stop_token_ids"], int))
    if values.get("show_special") is not None:
        values["show_special"] = tuple(_list("show_special", values["show_special"], str))
    try:
        if "logit_bias" in values:
            values["logit_bias"] = {int(token): float(bias) for token, bias in dict(values["logit_bias"]).items()}
        if "grammar" in values:
            values["grammar"] = GrammarSpec(**values["grammar"])
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"logit_bias or grammar has the wrong shape: {error}") from None
    return replace(defaults, **values)


def _list(name: str, value: Any, kind: type) -> list[Any]:
    entries = value if isinstance(value, list) else [value]
    if not all(isinstance(entry, kind) for entry in entries):
        raise InvalidRequest(f"{name} must be one or a list of {kind.__name__}, got {value!r}", param=name)
    return entries


def _result(name: str, outputs: list[Output]) -> dict[str, Any]:
    if outputs[-1].error is not None:
        return {"id": name, "error": outputs[-1].error}
    done = Completion.of(outputs)
    line: dict[str, Any] = {
        "id": name,
        "text": done.text,
        "token_ids": list(done.tokens),
        "finish_reason": done.finish_reason,
        "seed": done.seed,
        "usage": asdict(done.usage),
    }
    if done.logprobs:
        line["logprobs"] = [asdict(entry) for entry in done.logprobs]
    return line


def _append(descriptor: int, line: dict[str, Any]) -> None:
    os.write(descriptor, json.dumps(line, ensure_ascii=False).encode() + b"\n")
