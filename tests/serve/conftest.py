"""A gateway in this process over the echo engine in a child process, and a tokenizer folder for both."""

import os
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from tests.small_models import TEMPLATE, write_tokenizer

from statepool.engine.config import EngineConfig, ModelInfo
from statepool.engine.text.template import ChatTemplate
from statepool.engine.text.tokenizer import Tokenizer as TextTokenizer
from statepool.serve.config import ServeConfig
from statepool.serve.engine_client import AsyncEngine
from statepool.serve.served_model import ServedModel

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def echo_model(tmp_path_factory):
    """Folder ``echo`` with a byte-level tokenizer and a chat template, and no weights."""
    unused = (f"<|unused{i}|>" for i in range(50))
    marks = ("[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<|python_start|>", "<|python_end|>")
    return write_tokenizer(tmp_path_factory.mktemp("models") / "echo", *unused, *marks, template=TEMPLATE)


@pytest.fixture(scope="session")
def served(echo_model):
    """The echo model as translations see it; context of 1024 tokens."""
    tokenizer = TextTokenizer.load(echo_model)
    info = ModelInfo(
        id="echo",
        path=str(echo_model),
        family="echo",
        fingerprint="echo",
        quant="fp32",
        backend="echo",
        max_model_len=1024,
        vocab_size=tokenizer.vocab_size,
        hidden_size=4,
        layers=1,
        parameters=0,
        eos_ids=tokenizer.eos_ids,
        kv_token_bytes=1,
    )
    return ServedModel(info, tokenizer, ChatTemplate.load(echo_model), created=1)


def echo_environment():
    """Environment in which a child process finds the echo engine."""
    return {"PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}


@pytest.fixture(scope="session")
def start_engine(echo_model):
    """An async context manager: a started AsyncEngine over the echo engine, or another factory."""

    @asynccontextmanager
    async def start(factory="echo_engine:EchoEngine", max_in_flight=64):
        engine = AsyncEngine(max_in_flight)
        await engine.start(EngineConfig(model=str(echo_model)), factory=factory, environment=echo_environment())
        try:
            yield engine
        finally:
            await engine.close()

    return start


@pytest.fixture(scope="session")
def start_gateway(start_engine, served):
    """An async context manager: an HTTP client of a gateway over the echo engine, and its state."""
    from statepool.serve.containers import Containers
    from statepool.serve.gateway import build_app
    from statepool.serve.metrics import ServerMetrics
    from statepool.serve.response_store import ResponseStore
    from statepool.serve.state import GatewayState

    @asynccontextmanager
    async def start(max_in_flight=64, **settings):
        async with start_engine(max_in_flight=max_in_flight) as engine:
            await engine.wait_ready()
            config = ServeConfig(**settings)
            metrics = ServerMetrics(config.vllm_metric_names)
            containers, responses = Containers(config.code), ResponseStore(config.stored_responses)
            state = GatewayState(config, engine, metrics, responses, containers, model=served)
            transport = httpx.ASGITransport(build_app(state), raise_app_exceptions=False)
            try:
                async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=20) as client:
                    yield client, state
            finally:
                await containers.aclose()

    return start
