"""What a running server's engines cost, measured from outside: prompts one by one, then answers side by side.

The server may be anything that speaks the completions API; what a client waits for beside the engines (HTTP, the
hand-over between prefill and decode) is in the figures, since a simulation has to tell what clients will see.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median

import msgspec
import numpy as np
import numpy.typing as npt

from statepool.core.errors import InvalidConfig, Unavailable
from statepool.engine.shared import STALL_SECONDS
from statepool.kv.layout import BLOCK_SIZE
from statepool.serve.costs import NodeCosts, fit_prefill, least_squares
from statepool.sim.replay import Answer, ask, body_of, model_of, random_tokens
from statepool.web import get_json

__all__ = ["Calibration", "again", "calibrate", "read_costs", "slowdowns", "write_costs"]

_SHORTEST = 32
_REPEATS = 5
_LONG = 512
"""Tokens from which a prompt takes long enough for ``_LONG_REPEATS`` to tell as much."""
_LONG_REPEATS = 3
_ANSWER = 24
"""Tokens of an answer whose steps are timed; each batch is timed twice, so that a disturbance spoils half of it."""
_LONG_ANSWER = 512
"""Tokens of one beside which prompts are computed."""
_BATCHES = (1, 2, 4, 8, 16)
_MOST = 4096
_WARMING = 24
"""Most prompts that are computed and handed over first, so that all memory for keys and values has been used once: a
page that nobody has used yet costs its first user more than what is written to it."""
_TAIL = BLOCK_SIZE // 2
"""Tokens beyond whole blocks, which travel another way than these, of prompts that are handed over."""
_FEWEST = 4
"""Gaps of an answer that tell a mean."""
_LINE = 3
"""Prompts that wait while one is computed, and then share a step."""
_FIRST_SECONDS = 0.02
"""After which a prompt that has been sent is being computed."""
_AHEAD_SECONDS = 0.2
"""Long enough for others to come while it is computed."""
_BESIDE = 4
"""Answers that are written while prompts are computed beside them."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Costs, and how far the measurements lie from them: the largest relative error of each fit."""

    costs: NodeCosts
    prefill_error: float
    step_error: float


def calibrate(
    url: str, *, longest: int = 2048, api_key: str | None = None, passed: Callable[[int, int], None] = lambda *_: None
) -> Calibration:
    """Measure the server at ``url``, which should have nothing else to do.

    Args:
        url: of an OpenAI-compatible server.
        longest: most tokens of a prompt; fewer if the model holds fewer.
        api_key: of the server.
        passed: told after every request how many there are, and how many there will be.

    Raises:
        Unavailable: nobody answers, or a request fails. InvalidConfig: the model holds too few tokens to measure.
    """
    model, room = model_of(url, api_key)
    longest = min(longest, room - _ANSWER)
    if longest < 4 * _SHORTEST:
        raise InvalidConfig(f"{model} holds {room} tokens; a calibration needs {4 * _SHORTEST + _ANSWER}", param="url")
    client = _Client(url, model, api_key)
    held_tokens, step_tokens = _shape(url, api_key)
    lengths = _spread(_SHORTEST, longest)
    batches = [size for size in _BATCHES if size * (longest // 2 + _TAIL + _ANSWER) < held_tokens]
    beside = max((size for size in batches if size <= _BESIDE and size * longest < held_tokens), default=0)
    lines = [length for length in lengths if _LINE * length <= step_tokens]
    total = sum(2 * _repeats(length) for length in lengths) + _REPEATS * (1 + _LINE) * len(lines)
    total += 2 * (max(batches) + 2 * sum(batches)) + beside + 2 * _REPEATS * bool(beside)
    warming = min(-(-held_tokens // longest), _WARMING)
    total += warming
    client.passed = lambda done: passed(done, total)
    for number in range(warming):
        client.answer(client.new(f"warm/{number}", longest), 4)

    prefills = client.prefills(lengths)
    if lines:
        ahead = next((n for n, p, seconds in prefills if not p and seconds > _AHEAD_SECONDS), longest)
        shared = client.lines(min(ahead, longest // 2), lines)
        reply_s, prefill, prefill_error = fit_engine(prefills, shared, step_tokens)
    else:
        reply_s, (prefill, prefill_error) = 0.0, fit_prefill(*zip(*prefills, strict=True))
    steps, handoffs = client.steps(batches, (_SHORTEST + _TAIL, longest // 2 + _TAIL))
    written, held = fit_steps(steps)
    predicted = np.array([written[batch] + held * tokens for batch, tokens, _ in steps])
    step_error = float(np.abs(predicted / [seconds for _, _, seconds in steps] - 1).max())
    wait, per_token = _handoff(handoffs)
    kv_bytes = 1  # of a token: only times are known from outside, so bytes are counted in tokens
    costs = NodeCosts(
        name=model,
        prefill=prefill,
        linear_us=tuple(seconds * 1e6 for seconds in written.values()),
        sizes=tuple(written),
        hbm_bytes_s=kv_bytes / held if held > 0 else float("inf"),
        layers=1,
        hidden_bytes=0,
        kv_bytes=kv_bytes,
        vram_tokens=held_tokens,
        dram_tokens=held_tokens,
        nic_bytes_s=kv_bytes / per_token if per_token > 0 else float("inf"),
        h2d_bytes_s=float("inf"),
        handoff_base_s=wait,
        step_tokens=step_tokens if lines else 0,
        joining_s=STALL_SECONDS if step_tokens else 0.0,
        reply_s=reply_s,
    )
    if beside:
        factors = slowdowns(*client.beside(beside, longest // 2, longest // 4))
        costs = replace(costs, prefill_beside=factors[0], decode_beside=factors[1])
    return Calibration(costs, prefill_error, step_error)


def again(url: str, costs: NodeCosts, *, longest: int = 2048, api_key: str | None = None) -> tuple[float, float]:
    """How many times as long as ``costs`` say a prefill and a decode step take now: a machine's speed drifts.

    A handful of requests, for what ``calibrate`` has measured with hundreds.

    Args:
        url: of the server that ``costs`` are of; it should have nothing else to do.
        costs: what a calibration found.
        longest: as it was then.
        api_key: of the server.

    Raises:
        Unavailable: nobody answers, or a request fails.
    """
    client = _Client(url, costs.name, api_key)
    context = longest // 2
    prefills = []
    for name, length in enumerate((context // 2, context, context // 4) * _LONG_REPEATS):
        seconds = client.answer(client.new(f"again/{name}", length), 1).ttft or 0.0
        prefills.append(seconds / (costs.reply_s + costs.prefill_s(length)))
    steps, _ = client.steps([min(_BESIDE, costs.vram_tokens // (context + _ANSWER))], (context,))
    slower = [seconds / costs.decode_s(batch, tokens) for batch, tokens, seconds in steps]
    return median(prefills), median(slower) if slower else 1.0


class _Client:
    """Sends requests and takes their times."""

    def __init__(self, url: str, model: str, api_key: str | None) -> None:
        self._url, self._model, self._api_key = url, model, api_key
        self._run = secrets.token_hex(4)
        self._done = 0
        self.passed: Callable[[int], None] = lambda _: None

    def answer(self, prompt: list[int], tokens: int) -> Answer:
        """Send one request and wait for its end. Raises Unavailable if it fails."""
        body = body_of(prompt, tokens, self._model)
        answer = ask(0, len(prompt), tokens, body, self._url, self._api_key)
        if answer.ttft is None or answer.error:
            raise Unavailable(f"a request of {len(prompt)} tokens failed: {answer.error or answer.status}")
        self._done += 1
        self.passed(self._done)
        return answer

    def new(self, name: str, length: int) -> list[int]:
        """A prompt that the server has not seen, in an earlier calibration neither."""
        return random_tokens(f"{self._run}/{name}", length)

    def prefills(self, lengths: Sequence[int]) -> list[tuple[int, int, float]]:
        """(tokens, of which cached, seconds): new prompts of each length, and each again with a new second half."""
        found = []
        for length in lengths:
            new, half = [], []
            cached = length // 2 // BLOCK_SIZE * BLOCK_SIZE
            for repeat in range(_repeats(length)):
                prompt = self.new(f"{length}/{repeat}", length)
                new.append(self.answer(prompt, 1).ttft or 0.0)
                other = prompt[:cached] + self.new(f"{length}/{repeat}/again", length - cached)
                half.append(self.answer(other, 1).ttft or 0.0)
            found += [(length, 0, median(new)), (length, cached, median(half))]
        return found

    def lines(self, first: int, lengths: Sequence[int]) -> list[tuple[int, float]]:
        """(tokens, seconds) of steps that several prompts of a length share, sent while ``first`` tokens ran."""
        found = []
        with ThreadPoolExecutor(1 + _LINE) as crowd:
            for length in lengths:
                times = []
                for repeat in range(_REPEATS):
                    name = f"line/{length}/{repeat}"
                    ahead = crowd.submit(self.answer, self.new(name, first), 1)
                    time.sleep(_FIRST_SECONDS)
                    behind = [crowd.submit(self.answer, self.new(f"{name}/{i}", length), 1) for i in range(_LINE)]
                    begun, ends = _first_token(ahead.result()), [_first_token(each.result()) for each in behind]
                    if max(each.result().arrival for each in behind) < begun:
                        times.append(max(ends) - begun)
                if times:
                    found.append((length, median(times)))
        return found

    def beside(self, batch: int, context: int, length: int) -> tuple[list[Answer], list[Answer], list[Answer]]:
        """``batch`` answers behind ``context`` tokens each; prompts of ``length`` beside them, and alone.

        The answers have as long for themselves as each prompt took, and prompts are computed alone before and after
        them: a machine's speed drifts, so how much one slows the other is told against the same moment.
        """
        prompts: list[Answer] = []
        alone = [self.answer(self.new(f"before/{i}", length), 1) for i in range(_REPEATS)]
        with ThreadPoolExecutor(batch) as crowd:
            begun = [self.new(f"{context}/{i}", context) for i in range(batch)]
            written = [crowd.submit(self.answer, prompt, min(context, _LONG_ANSWER)) for prompt in begun]
            while not all(answer.done() for answer in written):
                prompt = self.new(f"beside/{len(prompts)}", length)
                prompts.append(ask(0, length, 1, body_of(prompt, 1, self._model), self._url, self._api_key))
                time.sleep(prompts[-1].ttft or 0.0)
        alone += [self.answer(self.new(f"after/{i}", length), 1) for i in range(_REPEATS)]
        return [answer.result() for answer in written], prompts, alone

    def steps(
        self, batches: Sequence[int], contexts: Sequence[int]
    ) -> tuple[list[tuple[int, int, float]], list[tuple[int, float]]]:
        """(answers, tokens they hold, seconds) of decode steps; (tokens, seconds) of hand-overs of a lone request.

        Prompts are computed before their answers are timed: where that takes longer than an answer, the first would
        have ended before the last began. A batch whose answers never were written all at once is left out.
        """
        steps, handoffs = [], []
        for context in contexts:
            prompts = [self.new(f"{context}/{i}", context) for i in range(max(batches))]
            first, *gaps = self.answer(prompts[0], _ANSWER).gaps
            handoffs.append((context, max(first - fmean(gaps), 0.0)))
            for prompt in prompts[1:]:
                self.answer(prompt, 1)
            found: dict[int, list[float]] = {batch: [] for batch in batches}
            for batch in (*batches, *reversed(batches)):
                with ThreadPoolExecutor(batch) as crowd:
                    found[batch] += _together(list(crowd.map(lambda each: self.answer(each, _ANSWER), prompts[:batch])))
            steps += [(batch, batch * (context + _ANSWER // 2), median(gaps)) for batch, gaps in found.items() if gaps]
        return steps, handoffs


def _together(answers: Sequence[Answer]) -> list[float]:
    """The mean gap between two tokens of each answer while all ``answers`` were being written.

    Of each by itself, and the mean: a busy client reads several tokens at once, and finds one long gap and no others.
    """
    times = [_written(answer) for answer in answers]
    begin, end = max(float(each[0]) for each in times), min(float(each[-1]) for each in times)
    inside = [each[(each >= begin) & (each <= end)] for each in times]
    return [float(each[-1] - each[0]) / (len(each) - 1) for each in inside if len(each) > _FEWEST]


def fit_engine(
    prefills: Sequence[tuple[int, int, float]], shared: Sequence[tuple[int, float]], step_tokens: int
) -> tuple[float, tuple[float, float, float], float]:
    """Seconds of a request's own way, (c0, c1, c2) of an engine that computes in steps, and the largest relative error.

    A prompt alone does not tell the constant of a step from its own way there and back, and counts both; those that
    share a step wait for neither again.

    Args:
        prefills: (tokens, of which cached, seconds) of prompts alone.
        shared: (tokens of each, seconds) of steps that ``_LINE`` prompts shared.
        step_tokens: most tokens of a step.
    """
    alone = [(1.0, -(-(n - p) // step_tokens), n - p, n * n - p * p) for n, p, _ in prefills]
    rows = alone + [(0.0, 1, _LINE * n, _LINE * n * n) for n, _ in shared]
    seconds = np.array([each[-1] for each in (*prefills, *shared)])
    design = np.array(rows, np.float64) / seconds[:, None]  # relative errors count
    costs = least_squares(design, np.ones_like(seconds))
    reply_s, c0, c1, c2 = costs.tolist()
    return reply_s, (c0, c1, c2), float(np.abs(design @ costs - 1).max())


def fit_steps(steps: Sequence[tuple[int, int, float]]) -> tuple[dict[int, float], float]:
    """Seconds of a step by the number of answers, beyond the largest on a line; seconds per token held.

    A line through all batches is 25 to 40 % off where one row takes another kernel than several.

    Args:
        steps: (answers, tokens they hold, seconds), of each number of answers with short and with long contexts.
    """
    batch, tokens, seconds = (np.asarray(column, np.float64) for column in zip(*steps, strict=True))
    alike = [batch == size for size in sorted(set(batch.tolist()))]
    longer = np.concatenate([tokens[same] - tokens[same].mean() for same in alike])
    slower = np.concatenate([seconds[same] - seconds[same].mean() for same in alike])
    held = max(float(longer @ slower / (longer @ longer)), 0.0)
    written = {int(batch[same][0]): max(float((seconds[same] - held * tokens[same]).mean()), 0.0) for same in alike}
    (before, last) = (list(written) * 2)[-2:]
    slope = max(written[last] - written[before], 0.0) / max(last - before, 1)
    return written | {_MOST: written[last] + slope * (_MOST - last)}, held


def slowdowns(answers: Sequence[Answer], prompts: Sequence[Answer], alone: Sequence[Answer]) -> tuple[float, float]:
    """How many times as long a prefill and a decode step take while the other goes on; at least 1.

    Args:
        answers: written side by side.
        prompts: some computed meanwhile; those that were not while all answers were being written say nothing.
        alone: such prompts, computed while nothing else went on.
    """
    times = [_written(answer) for answer in answers]
    begin, end = max(float(each[0]) for each in times), min(float(each[-1]) for each in times)
    spans = [(prompt.arrival, _first_token(prompt)) for prompt in prompts if prompt.ttft is not None]
    gaps = [gap for each in times for gap in pairwise(each[(each >= begin) & (each <= end)].tolist())]
    inside = [after - before for before, after in gaps if any(a <= before and after <= b for a, b in spans)]
    outside = [after - before for before, after in gaps if all(after <= a or b <= before for a, b in spans)]
    beside = [stop - start for start, stop in spans if begin <= start and stop <= end]
    prefill = median(beside) / median(prompt.ttft or 0.0 for prompt in alone) if beside else 1.0
    return max(prefill, 1.0), max(fmean(inside) / fmean(outside), 1.0) if inside and outside else 1.0


def _first_token(answer: Answer) -> float:
    """When it was there."""
    return answer.arrival + (answer.ttft or 0.0)


def _written(answer: Answer) -> npt.NDArray[np.float64]:
    """When each token after the first was there."""
    times: npt.NDArray[np.float64] = _first_token(answer) + np.cumsum(answer.gaps)
    return times


def _handoff(measured: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Seconds of a hand-over: constant, and per token; never negative."""
    (short, first), (long, second) = measured
    slope = max((second - first) / (long - short), 0.0)
    return max(first - slope * short, 0.0), slope


def _repeats(length: int) -> int:
    return _REPEATS if length < _LONG else _LONG_REPEATS


def _spread(least: int, most: int) -> list[int]:
    """Lengths from ``least`` to ``most``, each twice the one before."""
    lengths = [least]
    while lengths[-1] * 2 <= most:
        lengths.append(lengths[-1] * 2)
    return lengths if lengths[-1] == most else [*lengths, most]


def _shape(url: str, api_key: str | None) -> tuple[int, int]:
    """Tokens whose keys and values one engine holds, and most of a step, 0 if the server does not tell.

    A server that does not tell the first is taken for a large one.
    """
    try:
        told = get_json(url, "/cluster", api_key)
        held = int(min(engine["kv_blocks_total"] for engine in told["engines"])) * BLOCK_SIZE
        return held, int(told.get("step_tokens", 0))
    except (Unavailable, LookupError, TypeError, ValueError):
        return 1 << 30, 0


def write_costs(path: Path, costs: NodeCosts) -> None:
    """Keep ``costs`` for ``--node``."""
    path.write_text(json.dumps(asdict(costs), indent=1) + "\n", encoding="utf-8")


def read_costs(path: Path) -> NodeCosts:
    """Costs that ``write_costs`` wrote.

    Raises:
        InvalidConfig: there are none in the file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        unknown = sorted(found.keys() - {item.name for item in fields(NodeCosts)})
        costs = msgspec.convert(found, NodeCosts)
    except (OSError, ValueError, AttributeError, msgspec.ValidationError) as error:
        raise InvalidConfig(f"{path} holds no costs; statepool calibrate writes them: {error}", param="node") from None
    if unknown:
        raise InvalidConfig(f"{path}: {unknown[0]!r} is no cost", param="node")
    return costs
