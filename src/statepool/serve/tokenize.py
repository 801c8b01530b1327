"""``/tokenize``, ``/detokenize`` and ``/tokenizer_info``: the tokenizer as a service."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from statepool.core.errors import InvalidRequest
from statepool.serve.openai.chat import message_dict, tool_dict
from statepool.serve.openai.completion_schema import (
    DetokenizeAnswer,
    DetokenizeRequest,
    TokenizeAnswer,
    TokenizeRequest,
    TokenizerInfo,
)
from statepool.serve.routing import new_router
from statepool.serve.served_model import ServedModel
from statepool.serve.state import State
from statepool.serve.transport import json_response, translate

router = new_router()


def tokens_of(body: TokenizeRequest, model: ServedModel) -> list[int]:
    """Ids of a text, or of messages in the model's prompt form.

    Control tokens inside a text are plain text, as in prompts. A text that is one control token and nothing else means
    that token: so clients ask for the id of ``eos_token``.

    Raises:
        InvalidRequest: neither or both of prompt and messages are given.
        NotFound: the model is not served here.
    """
    model.check_name(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequest("give either prompt or messages", param="prompt")
    if body.prompt is not None:
        if (control := model.tokenizer.control_id(body.prompt)) is not None:
            return [control]
        return model.encode(body.prompt, add_special=body.add_special_tokens)
    messages = [message_dict(message) for message in body.messages or ()]
    tools = [tool_dict(tool) for tool in body.tools or ()]
    return model.encode_messages(messages, tools, body.add_generation_prompt)


@router.post("/tokenize", response_model=TokenizeAnswer, tags=["tokens"])
async def tokenize(body: TokenizeRequest, request: HttpRequest, state: State) -> Response:
    """Token ids of a text or of messages."""
    model = state.ready_model()
    tokens = await translate(request, lambda: tokens_of(body, model))
    answer: dict[str, Any] = {"count": len(tokens), "max_model_len": model.info.max_model_len, "tokens": tokens}
    if body.return_token_strs:
        answer["token_strs"] = [model.tokenizer.token_text(token) for token in tokens]
    return json_response(answer)


@router.post("/detokenize", response_model=DetokenizeAnswer, tags=["tokens"])
async def detokenize(body: DetokenizeRequest, request: HttpRequest, state: State) -> Response:
    """Text of token ids."""
    model = state.ready_model()
    model.check_name(body.model)
    model.check_ids(body.tokens, "tokens")
    skip = body.skip_special_tokens
    text = await translate(request, lambda: model.tokenizer.decode(body.tokens, skip_special=skip))
    return json_response({"prompt": text})


@router.get("/tokenizer_info", response_model=TokenizerInfo, tags=["tokens"])
async def tokenizer_info(state: State) -> Response:
    """What a client without the model's files needs to prepare prompts as the server would."""
    model = state.ready_model()
    return json_response(
        {
            "model_max_length": model.info.max_model_len,
            "chat_template": model.template.source,
            **{name: model.template.variables.get(name) for name in ("bos_token", "eos_token", "pad_token")},
        }
    )
