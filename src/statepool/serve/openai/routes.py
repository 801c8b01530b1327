"""The OpenAI endpoints. Each handler translates, asks the engine, and sends; nothing else."""

from __future__ import annotations

from uuid import uuid4

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from statepool.serve.openai.chat import ChatJob
from statepool.serve.openai.chat_schema import ChatCompletion, ChatRequest
from statepool.serve.openai.completion_schema import Completion, CompletionRequest, EmbeddingList, EmbeddingRequest
from statepool.serve.openai.completions import CompletionJob
from statepool.serve.openai.embeddings import EmbeddingJob
from statepool.serve.openai.models import model_card
from statepool.serve.openai.response_schema import Deleted, ResponseBody, ResponseRequest
from statepool.serve.openai.responses import ResponseJob, new_response_id
from statepool.serve.openai.schema import ModelCard, ModelList
from statepool.serve.routing import new_router, streaming
from statepool.serve.state import State
from statepool.serve.transport import answer, answer_whole, json_response, translate

router = new_router()


@router.get("/v1/models", response_model=ModelList, tags=["models"])
async def list_models(state: State) -> Response:
    """List what is served."""
    return json_response({"object": "list", "data": [model_card(state.ready_model())]})


@router.get("/v1/models/{model:path}", response_model=ModelCard, tags=["models"])
async def get_model(model: str, state: State) -> Response:
    """Describe one model."""
    served = state.ready_model()
    served.check_name(model)
    return json_response(model_card(served))


@router.post("/v1/chat/completions", responses=streaming(ChatCompletion), tags=["generate"])
async def chat_completions(body: ChatRequest, request: HttpRequest, state: State) -> Response:
    """Continue a conversation."""
    model = state.ready_model()
    created = int(state.wall_clock())
    job = await translate(request, lambda: ChatJob(body, model, f"chatcmpl-{uuid4().hex}", created))
    return await answer(request, state, job, stream=bool(body.stream))


@router.post("/v1/completions", responses=streaming(Completion), tags=["generate"])
async def completions(body: CompletionRequest, request: HttpRequest, state: State) -> Response:
    """Continue texts or token ids, or score them with ``echo`` and ``logprobs``."""
    model = state.ready_model()
    created = int(state.wall_clock())
    job = await translate(request, lambda: CompletionJob(body, model, f"cmpl-{uuid4().hex}", created))
    return await answer(request, state, job, stream=bool(body.stream))


@router.post("/v1/responses", responses=streaming(ResponseBody), tags=["generate"])
async def create_response(body: ResponseRequest, request: HttpRequest, state: State) -> Response:
    """Create a response, possibly as the continuation of an earlier one."""
    model = state.ready_model()
    created = int(state.wall_clock())
    job = await translate(
        request, lambda: ResponseJob(body, model, state.responses, state.containers, new_response_id(), created)
    )
    return await answer(request, state, job, stream=bool(body.stream))


@router.get("/v1/responses/{response_id}", response_model=ResponseBody, tags=["generate"])
async def get_response(response_id: str, state: State) -> Response:
    """A stored response."""
    return json_response(state.responses.get(response_id).body)


@router.delete("/v1/responses/{response_id}", response_model=Deleted, tags=["generate"])
async def delete_response(response_id: str, state: State) -> Response:
    """Forget a stored response."""
    state.responses.drop(response_id)
    return json_response({"id": response_id, "object": "response", "deleted": True})


@router.post("/v1/embeddings", response_model=EmbeddingList, tags=["generate"])
async def create_embeddings(body: EmbeddingRequest, request: HttpRequest, state: State) -> Response:
    """Unit vectors of texts: the mean of the model's final hidden states."""
    model = state.ready_model()
    job = await translate(request, lambda: EmbeddingJob(body, model, f"embd-{uuid4().hex}"))
    return await answer_whole(request, state, job)
