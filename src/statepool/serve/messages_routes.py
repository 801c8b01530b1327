"""The Anthropic endpoints."""

from __future__ import annotations

from uuid import uuid4

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from statepool.serve.anthropic import MessageJob, count_tokens
from statepool.serve.anthropic_schema import CountAnswer, CountRequest, MessageBody, MessageRequest
from statepool.serve.routing import new_anthropic_router, streaming
from statepool.serve.state import State
from statepool.serve.transport import answer, json_response, translate

router = new_anthropic_router()


@router.post("/v1/messages", responses=streaming(MessageBody), tags=["generate"])
async def messages(body: MessageRequest, request: HttpRequest, state: State) -> Response:
    """Continue a conversation."""
    model = state.ready_model()
    job = await translate(request, lambda: MessageJob(body, model, f"msg_{uuid4().hex}"))
    return await answer(request, state, job, stream=bool(body.stream))


@router.post("/v1/messages/count_tokens", response_model=CountAnswer, tags=["tokens"])
async def count(body: CountRequest, request: HttpRequest, state: State) -> Response:
    """Tokens the prompt of a message would have."""
    model = state.ready_model()
    return json_response({"input_tokens": await translate(request, lambda: count_tokens(body, model))})
