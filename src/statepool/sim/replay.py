"""A trace against a real server: every call at its time, its tokens streamed, its times as the client sees them.

A block number of the trace becomes the same tokens wherever it occurs, so prefixes are shared as they were recorded.
``scale`` shortens prompts and answers for models of shorter context.
"""

from __future__ import annotations

import json
import random
import threading
import time
import urllib.error
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from statepool.core.errors import InvalidConfig, Unavailable
from statepool.serve.snapshot import worst_tenth
from statepool.sim.traces import Call
from statepool.web import get_json, open_url

__all__ = [
    "Answer",
    "Played",
    "ask",
    "body_of",
    "model_of",
    "play",
    "random_tokens",
    "summary",
    "tokens_of",
    "write_answers",
]

_TIMEOUT_SECONDS = 120.0
_FIRST_ID, _LAST_ID = 10, 250
"""Every vocabulary has these, and few special tokens are among them."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one call. Times are seconds since the replay began; ``gaps`` between two tokens."""

    number: int
    arrival: float
    prompt: int
    output: int
    status: int
    """Of HTTP; 0 if no answer came."""
    ttft: float | None
    gaps: tuple[float, ...]
    error: str = ""

    @property
    def tbt(self) -> float:
        """Mean of the longest tenth of the gaps."""
        return worst_tenth(self.gaps)


@dataclass(frozen=True, slots=True)
class Played:
    """Figures of a replay; shares are of all calls."""

    calls: int
    answered: float
    refused: float
    failed: float
    effective: float
    """Share that kept both promises."""
    effective_tokens: float
    """The same by prompt tokens."""
    ttft_p50_s: float
    ttft_p90_s: float
    ttft_p99_s: float
    tbt_p50_s: float
    tbt_p90_s: float
    tbt_p99_s: float
    tokens_s: float
    """Answer tokens per second, from the first arrival to the last token."""


def tokens_of(call: Call, block: int, scale: float) -> list[int]:
    """The prompt of a call as token ids: equal block numbers give equal tokens.

    Args:
        call: of the trace; without block numbers, a prompt of its own.
        block: tokens of a block in the trace.
        scale: how much of each block and of the prompt is used.
    """
    length, each = max(1, round(call.prompt * scale)), max(1, round(block * scale))
    names: Sequence[Any] = call.keys or [f"{call.at}/{call.prompt}/{i}" for i in range(-(-length // each))]
    tokens: list[int] = []
    for name in names:
        tokens += random_tokens(f"block/{name}", each)
    return tokens[:length]


def random_tokens(name: str, count: int) -> list[int]:
    """Tokens of no meaning, the same for the same ``name``."""
    draw = random.Random(name)
    return [draw.randrange(_FIRST_ID, _LAST_ID) for _ in range(count)]


def play(
    calls: Sequence[Call],
    url: str,
    *,
    block: int,
    scale: float = 1.0,
    api_key: str | None = None,
    passed: Callable[[int], None] = lambda _: None,
) -> list[Answer]:
    """Send ``calls`` to the server at ``url``, each at its time; answers in their order.

    Args:
        calls: in order of arrival.
        url: of an OpenAI-compatible server of ours.
        block: tokens of a block in the trace.
        scale: see ``tokens_of``; answers are shortened alike.
        api_key: of the server.
        passed: told after every answer how many there are.

    Raises:
        InvalidConfig: ``url`` or ``scale`` is wrong, or a prompt does not fit the model. Unavailable: nobody answers.
    """
    if not scale > 0:
        raise InvalidConfig(f"scale must be above 0, got {scale}", param="scale")
    model, room = model_of(url, api_key)
    longest = max(round(call.prompt * scale) + max(1, round(call.output * scale)) for call in calls)
    if longest > room:
        raise InvalidConfig(
            f"scale {scale} gives {longest} tokens, and {model} holds {room}; try {scale * room / longest:.4f}",
            param="scale",
        )
    outputs = [max(1, round(call.output * scale)) for call in calls]
    prompts = [tokens_of(call, block, scale) for call in calls]
    bodies = [body_of(prompt, output, model) for prompt, output in zip(prompts, outputs, strict=True)]
    found: dict[int, Answer] = {}
    lock, started = threading.Lock(), time.perf_counter()

    def one(number: int) -> None:
        answer = ask(number, calls[number].prompt, calls[number].output, bodies[number], url, api_key, started)
        with lock:
            found[number] = answer
            passed(len(found))

    threads = []
    for number, call in enumerate(calls):
        time.sleep(max(0.0, started + call.at - time.perf_counter()))
        threads.append(threading.Thread(target=one, args=(number,), daemon=True))
        threads[-1].start()
    for thread in threads:
        thread.join()
    return [found[number] for number in range(len(calls))]


def summary(answers: Sequence[Answer], ttft_s: float, tbt_s: float) -> Played:
    """The figures of ``answers`` under promises of ``ttft_s`` and ``tbt_s`` seconds."""
    done = [answer for answer in answers if answer.status == 200 and not answer.error and answer.ttft is not None]
    good = [answer for answer in done if (answer.ttft or 0) <= ttft_s and answer.tbt <= tbt_s]
    refused = sum(answer.status == 429 for answer in answers)
    ttft, tbt = [answer.ttft or 0.0 for answer in done], [answer.tbt for answer in done if answer.gaps]
    ends = [answer.arrival + (answer.ttft or 0) + sum(answer.gaps) for answer in done]
    seconds = max(ends) - min(answer.arrival for answer in answers) if done else float("nan")

    def at(values: Sequence[float], share: float) -> float:
        return float(np.quantile(values, share)) if values else float("nan")

    return Played(
        calls=len(answers),
        answered=len(done) / len(answers),
        refused=refused / len(answers),
        failed=(len(answers) - len(done) - refused) / len(answers),
        effective=len(good) / len(answers),
        effective_tokens=sum(answer.prompt for answer in good) / sum(answer.prompt for answer in answers),
        ttft_p50_s=at(ttft, 0.5),
        ttft_p90_s=at(ttft, 0.9),
        ttft_p99_s=at(ttft, 0.99),
        tbt_p50_s=at(tbt, 0.5),
        tbt_p90_s=at(tbt, 0.9),
        tbt_p99_s=at(tbt, 0.99),
        tokens_s=sum(1 + len(answer.gaps) for answer in done) / seconds,
    )


def write_answers(path: Path, answers: Sequence[Answer]) -> None:
    """One line of JSON per call."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(answer) | {"tbt": answer.tbt}) + "\n" for answer in answers)


def model_of(url: str, api_key: str | None) -> tuple[str, int]:
    """Name and context of the served model."""
    found = get_json(url, "/v1/models", api_key)
    try:
        return found["data"][0]["id"], int(found["data"][0]["max_model_len"])
    except (LookupError, TypeError, ValueError) as error:
        raise Unavailable(f"no server answers at {url}/v1/models: {error}") from None


def body_of(prompt: list[int], output: int, model: str) -> bytes:
    """The request for ``output`` greedy tokens behind ``prompt``, streamed, each with what tells it from the next."""
    return json.dumps(
        {
            "model": model,
            "prompt": prompt,
            "max_tokens": output,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "logprobs": 0,
        }
    ).encode()


def ask(
    number: int, prompt: int, output: int, body: bytes, url: str, api_key: str | None, started: float = 0.0
) -> Answer:
    """Send one request and follow its stream to the end; ``started`` is when the clock of its times began."""
    sent = time.perf_counter()
    status, error, ttft = 0, "", None
    gaps: list[float] = []
    last = 0.0
    try:
        with open_url(url, "/v1/completions", body, api_key=api_key, timeout_s=_TIMEOUT_SECONDS) as stream:
            status = stream.status
            for line in stream:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    error = str(event["error"].get("message", "failed"))
                    break
                count, now = _tokens(event), time.perf_counter()
                if not count:
                    continue
                if ttft is None:
                    ttft, count = now - sent, count - 1
                gaps += [(now - last) / count] * count if count else []
                last = now
    except urllib.error.HTTPError as refused:
        status, error = refused.code, refused.read(300).decode("utf-8", "replace")
    except (OSError, ValueError) as broken:
        error = f"{type(broken).__name__}: {broken}"
    return Answer(number, sent - started, prompt, output, status, ttft, tuple(gaps), error)


def _tokens(event: dict[str, Any]) -> int:
    """How many tokens an event brings."""
    choice = (event.get("choices") or [{}])[0]
    return len(((choice.get("logprobs") or {}).get("tokens")) or [])
