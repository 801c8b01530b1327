"""From the fields of a request body to a request of the engine."""

from __future__ import annotations

from statepool.core.errors import InvalidRequest
from statepool.engine.request import GrammarSpec, Request, SamplingParams
from statepool.serve.openai.schema import Placement, Sampling
from statepool.serve.served_model import ServedModel


def sampling_params(
    body: Sampling,
    model: ServedModel,
    *,
    max_tokens: int,
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
    grammar: GrammarSpec | None = None,
    marks: tuple[str, ...] = (),
) -> SamplingParams:
    """Engine parameters for ``body``; fields it leaves out get the API's defaults.

    ``marks`` are special tokens that whoever reads the answer must see.

    Raises:
        InvalidRequest: a value is out of range, or ``logit_bias`` names no token.
    """
    stop = body.stop
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=min(body.min_tokens or 0, max_tokens),
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(body.top_k or 0, 0),
        min_p=body.min_p or 0.0,
        seed=body.seed,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        logit_bias=_bias(body.logit_bias or {}, model),
        stop=() if stop is None else (stop,) if isinstance(stop, str) else tuple(dict.fromkeys(stop)),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        include_stop=body.include_stop_str_in_output,
        ignore_eos=body.ignore_eos,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        grammar=grammar,
        show_special=marks if body.skip_special_tokens else None,
    )


def engine_request(
    body: Placement, name: str, prompt: tuple[int, ...], params: SamplingParams, index: int = 0, first: bool = True
) -> Request:
    """The request ``name`` of a call. ``index`` numbers siblings; only the ``first`` of a call has its session."""
    return Request(
        id=name,
        prompt=prompt,
        params=params,
        salt=body.cache_salt or "",
        priority=body.priority or 0,
        index=index,
        session=body.session if first else None,
        attention=body.attention,
    )


def _bias(written: dict[str, float], model: ServedModel) -> dict[int, float]:
    bias: dict[int, float] = {}
    for key, value in written.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise InvalidRequest(f"logit_bias: {key[:40]!r} is not a token id", param="logit_bias")
        bias[int(key)] = value
    model.check_ids(list(bias), "logit_bias")
    return bias
