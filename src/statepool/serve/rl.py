"""What an outside trainer drives: freeze, hand over weights, go on.

Paths and bodies follow vLLM's, which trainers already speak. Weights travel through a checkpoint folder both
sides can read (``/dev/shm`` makes it shared memory); there is no collective-communication transport.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import Field
from starlette.responses import Response

from statepool.core.errors import InvalidCheckpoint, InvalidRequest
from statepool.serve.openai.schema import Shape
from statepool.serve.routing import new_router
from statepool.serve.state import State
from statepool.serve.transport import json_response

router = new_router()

_BACKEND = "files"


class WorldSize(Shape):
    """How many processes hold weights."""

    world_size: int


class Done(Shape):
    """The command was carried out."""

    status: Literal["ok"] = "ok"


class InitInfo(Shape):
    """Body of ``POST /init_weight_transfer_engine``."""

    init_info: dict[str, Any] = Field(default_factory=dict)


class StartInfo(Shape):
    """Body of ``POST /start_weight_update``."""

    is_checkpoint_format: bool = True


class FileUpdate(Shape):
    """Where the new weights are, and what they are called."""

    path: str
    version: str | None = None


class UpdateInfo(Shape):
    """Body of ``POST /update_weights``."""

    update_info: FileUpdate


@router.get("/get_world_size", response_model=WorldSize, tags=["rl"])
async def get_world_size() -> Response:
    """One engine process holds all weights."""
    return json_response({"world_size": 1})


@router.get("/server_info", response_model=dict[str, Any], tags=["rl"])
async def server_info(state: State) -> Response:
    """What a trainer checks before it sends weights, in vLLM's nesting."""
    info = state.ready_model().info
    dtype = "torch.float32" if info.quant == "fp32" else "torch.bfloat16"
    model = {"model": info.id, "dtype": dtype, "max_model_len": info.max_model_len, "quantization": info.quant}
    return json_response({"vllm_config": {"model_config": model}, "weight_version": state.engine.stats.weight_version})


@router.post("/pause", response_model=Done, tags=["rl"])
async def pause(state: State, mode: Annotated[Literal["keep", "abort", "wait"], Query()] = "keep") -> Response:
    """Stop stepping. Running requests are kept where they are, ended, or waited for."""
    state.ready_model()
    if mode == "abort":
        await state.engine.abort_all()
    elif mode == "wait":
        await state.engine.idle()
    await state.engine.call("pause")
    if mode != "keep":
        await state.engine.call("reset_prefix_cache")
    return json_response({"status": "ok"})


@router.post("/resume", response_model=Done, tags=["rl"])
async def resume(state: State) -> Response:
    """Go on stepping."""
    state.ready_model()
    await state.engine.call("resume")
    return json_response({"status": "ok"})


@router.post("/init_weight_transfer_engine", response_model=Done, tags=["rl"])
async def init_weight_transfer_engine(body: InitInfo, state: State) -> Response:
    """Agree on how weights will come: only ``{"backend": "files"}`` is there."""
    state.ready_model()
    backend = body.init_info.get("backend", _BACKEND)
    if backend != _BACKEND or "master_address" in body.init_info:
        raise InvalidRequest(
            'init_info: this server takes weights from files; send {"backend": "files"} and a path to /update_weights',
            param="init_info",
        )
    return json_response({"status": "ok"})


@router.post("/start_weight_update", response_model=Done, tags=["rl"])
async def start_weight_update(body: StartInfo, state: State) -> Response:
    """Announce new weights."""
    state.ready_model()
    if not body.is_checkpoint_format:
        raise InvalidRequest("is_checkpoint_format must be true", param="is_checkpoint_format")
    return json_response({"status": "ok"})


@router.post("/update_weights", response_model=Done, tags=["rl"])
async def update_weights(body: UpdateInfo, state: State) -> Response:
    """Load tensors from a checkpoint folder between two steps; cached KV of the old weights is dropped."""
    state.ready_model()
    update = body.update_info
    version = update.version or str(int(state.wall_clock() * 1000))
    try:
        await state.engine.call("update_weights", path=update.path, version=version)
    except InvalidCheckpoint as error:
        raise InvalidRequest(error.message, param="update_info.path") from error
    return json_response({"status": "ok"})


@router.post("/finish_weight_update", response_model=Done, tags=["rl"])
async def finish_weight_update(state: State) -> Response:
    """Confirm that the new weights are in place."""
    state.ready_model()
    return json_response({"status": "ok"})
