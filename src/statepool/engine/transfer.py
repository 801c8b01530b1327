"""A running request as bytes, so that it can go on in another engine, process or machine.

Format: 8 bytes magic, 8 bytes header length, JSON header, raw KV blocks, 16 bytes XXH3-128 of all before it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash

from statepool.core.errors import Corruption, InvalidRequest
from statepool.engine.request import GrammarSpec, Request, SamplingParams, TokenLogprob
from statepool.engine.sampler import Sampled
from statepool.engine.sequence import Sequence

_MAGIC = b"spstate3"
_SUM = 16


@dataclass(frozen=True, slots=True)
class State:
    """An unpacked request: ``output`` = tokens generated so far; KV of ``computed`` tokens exists.

    The first ``skipped`` blocks of it are in the shared pool, ``blocks`` are the others.
    """

    request: Request
    seed: int
    output: tuple[int, ...]
    computed: int
    cached_tokens: int
    prompt_logprobs: list[TokenLogprob | None]
    skipped: int
    blocks: npt.NDArray[Any]


def pack(identity: str, sequence: Sequence, skipped: int, blocks: npt.NDArray[Any]) -> bytes:
    """Serialise a sequence. ``identity`` names model, weights and layout; ``blocks`` follow the ``skipped`` ones."""
    header = {
        "identity": identity,
        "request": asdict(sequence.request),
        "seed": sequence.sampler.seed,
        "output": sequence.tokens[sequence.prompt_len :],
        "computed": sequence.computed,
        "cached_tokens": sequence.cached_tokens,
        "prompt_logprobs": [entry and msgspec.structs.asdict(entry) for entry in sequence.prompt_logprobs],
        "skipped": skipped,
        "shape": blocks.shape,
        "dtype": blocks.dtype.str,
    }
    raw = json.dumps(header).encode()
    body = _MAGIC + len(raw).to_bytes(8, "little") + raw + np.ascontiguousarray(blocks).tobytes()
    return body + xxhash.xxh3_128_digest(body)


def unpack(data: bytes, identity: str) -> State:
    """The inverse of ``pack``.

    Raises:
        Corruption: damaged or not such a state. InvalidRequest: made with another model or weights.
    """
    body, checksum = data[:-_SUM], data[-_SUM:]
    if not data.startswith(_MAGIC) or xxhash.xxh3_128_digest(body) != checksum:
        raise Corruption("the exported state is damaged or not one; export it again")
    start = 16 + int.from_bytes(data[8:16], "little")
    header = json.loads(data[16:start])
    if header["identity"] != identity:
        raise InvalidRequest(f"the state belongs to {header['identity']}, this engine is {identity}", param="state")
    blocks = np.frombuffer(body, np.dtype(header["dtype"]), offset=start).reshape(header["shape"])
    return State(
        request=_request(header["request"]),
        seed=header["seed"],
        output=tuple(header["output"]),
        computed=header["computed"],
        cached_tokens=header["cached_tokens"],
        prompt_logprobs=[entry and _logprob(entry) for entry in header["prompt_logprobs"]],
        skipped=header["skipped"],
        blocks=blocks,
    )


def replay(sequence: Sequence, state: State) -> None:
    """Bring a fresh sequence to where the exported one was, without handing out its text again."""
    for token in state.output:
        if not sequence.admits(token):
            raise InvalidRequest(f"the state holds token {token}, which its grammar forbids there", param="state")
        sequence.append(Sampled(token, 0.0, 0.0))
    sequence.discard()
    sequence.prompt_logprobs = state.prompt_logprobs
    sequence.cached_tokens, sequence.admitted = state.cached_tokens, True
    sequence.started = bool(state.output)


def _request(raw: dict[str, Any]) -> Request:
    params = dict(raw["params"])
    params["logit_bias"] = {int(token): bias for token, bias in params["logit_bias"].items()}
    params["stop"], params["stop_token_ids"] = tuple(params["stop"]), tuple(params["stop_token_ids"])
    params["show_special"] = params["show_special"] and tuple(params["show_special"])
    params["grammar"] = params["grammar"] and GrammarSpec(**params["grammar"])
    return Request(**{**raw, "prompt": tuple(raw["prompt"]), "params": SamplingParams(**params)})


def _logprob(raw: dict[str, Any]) -> TokenLogprob:
    return TokenLogprob(raw["token"], raw["logprob"], tuple((t, p) for t, p in raw["top"]))
