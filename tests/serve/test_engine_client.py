"""The engine process and the client: streams, cancellation, death."""

import asyncio
import os
import signal

import pytest

from statepool.core.errors import InvalidRequest, Overloaded, Unavailable
from statepool.engine.request import Request, SamplingParams


def request(served, text, name="r", **params):
    return Request(name, tuple(served.encode(text)), SamplingParams(**{"max_tokens": 100, **params}))


async def test_outputs_come_in_order_and_end_once(start_engine, served):
    async with start_engine() as engine:
        info = await engine.wait_ready()
        assert info.id == "echo"
        outputs = [output async for output in engine.stream(request(served, "{{hello}}"))]
        assert "".join(output.text for output in outputs) == "hello"
        assert [output.finish_reason for output in outputs] == [None] * 4 + ["stop"]
        assert engine.in_flight == 0


async def test_several_requests_share_one_stream(start_engine, served):
    async with start_engine() as engine:
        await engine.wait_ready()
        requests = [request(served, f"{{{{{text}}}}}", text) for text in ("one", "three", "fourteen")]
        texts = {"one": "", "three": "", "fourteen": ""}
        async for output in await engine.submit(*requests):
            texts[output.id] += output.text
        assert texts == {name: name for name in texts}


async def test_one_refused_request_ends_its_siblings(start_engine, served):
    async with start_engine() as engine:
        await engine.wait_ready()
        good = request(served, "stall", "good", max_tokens=100_000)
        bad = Request("bad", (300,), SamplingParams())
        with pytest.raises(InvalidRequest, match="not welcome") as caught:
            await engine.submit(good, bad)
        assert caught.value.param == "prompt"
        assert engine.in_flight == 0
        assert (await engine.refresh_stats()).running == 0


async def test_closing_a_stream_frees_the_request(start_engine, served):
    async with start_engine() as engine:
        await engine.wait_ready()
        stream = await engine.submit(request(served, "stall", max_tokens=1_000_000))
        await anext(stream)
        await stream.aclose()
        await stream.aclose()
        assert (await engine.refresh_stats()).running == 0
        never_read = await engine.submit(request(served, "stall", max_tokens=1_000_000))
        await never_read.aclose()
        assert (await engine.refresh_stats()).running == 0


async def test_death_ends_every_waiter(start_engine, served):
    async with start_engine() as engine:
        await engine.wait_ready()
        streams = [await engine.submit(request(served, "stall", str(i), max_tokens=1_000_000)) for i in range(3)]
        await engine.call("pause")
        os.kill(engine.pid, signal.SIGKILL)

        async def drain(stream):
            async for _ in stream:
                pass

        failures = await asyncio.wait_for(asyncio.gather(*map(drain, streams), return_exceptions=True), 60)
        assert all(isinstance(failure, Unavailable) for failure in failures)
        with pytest.raises(Unavailable, match="ended unexpectedly"):
            await engine.submit(request(served, "{{x}}"))
        with pytest.raises(Unavailable):
            await engine.call("stats")


async def test_a_call_in_flight_hears_of_the_death(start_engine):
    async with start_engine() as engine:
        await engine.wait_ready()
        os.kill(engine.pid, signal.SIGSTOP)
        call = asyncio.ensure_future(engine.call("stats"))
        await asyncio.sleep(0.05)
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(Unavailable):
            await asyncio.wait_for(call, 60)


async def test_a_failing_step_is_reported(start_engine, served):
    async with start_engine() as engine:
        await engine.wait_ready()
        with pytest.raises(Unavailable, match="boom"):
            async for _ in engine.stream(request(served, "boom")):
                pass


async def test_an_engine_that_cannot_be_built_says_why(start_engine):
    async with start_engine("echo_engine:BrokenEngine") as engine:
        with pytest.raises(InvalidRequest, match="never loads") as caught:
            await engine.wait_ready()
        assert caught.value.param == "model"


async def test_too_many_sequences_are_refused(start_engine, served):
    async with start_engine(max_in_flight=2) as engine:
        await engine.wait_ready()
        streams = [await engine.submit(request(served, "stall", str(i), max_tokens=1_000_000)) for i in range(2)]
        with pytest.raises(Overloaded):
            await engine.submit(request(served, "{{x}}", "third"))
        for stream in streams:
            await stream.aclose()
        assert [output.text async for output in engine.stream(request(served, "{{x}}"))] == ["x"]


async def test_an_unknown_command_is_refused(start_engine):
    async with start_engine() as engine:
        await engine.wait_ready()
        with pytest.raises(InvalidRequest, match="no method 'explode'"):
            await engine.call("explode")


async def test_pause_keeps_requests(start_engine, served):
    async with start_engine() as engine:
        await engine.wait_ready()
        await engine.call("pause")
        stream = await engine.submit(request(served, "{{hi}}"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.2)
        await engine.call("resume")
        assert [output.text async for output in stream] == ["h", "i"]
