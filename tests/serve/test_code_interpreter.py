"""The code interpreter of ``/v1/responses`` through the openai package. The echo engine answers with what stands last
between ``{{`` and ``}}`` in its prompt, so a cell that prints such marks writes the next turn.
"""

import asyncio
import json
from dataclasses import replace

import openai
import pytest
import pytest_asyncio
from tests.sandbox.conftest import USABLE

from statepool.core.errors import StatepoolError
from statepool.sandbox.template import HOME
from statepool.serve.config import CodeConfig
from statepool.serve.containers import Outcome
from statepool.serve.openai.code_calls import code_in, seen

pytestmark = [
    pytest.mark.skipif(not USABLE, reason="no sandbox works here"),
    pytest.mark.asyncio(loop_scope="module"),
]
AUTO = {"type": "code_interpreter", "container": {"type": "auto"}}
OUTPUTS = ["code_interpreter_call.outputs"]


def say(text):
    """Code that prints an answer for the next turn."""
    return f"print(chr(123) * 2 + {text!r} + chr(125) * 2)"


async def until(holds):
    """Wait for what a busy machine takes long to do."""
    for _ in range(6000):
        if await asyncio.to_thread(holds):
            return
        await asyncio.sleep(0.02)
    pytest.fail("it never did")


def made_file(state, container, name):
    """Whether the cell that runs has come so far."""
    return state.containers.get(container).sandbox.files.exists(name)


def cell(code):
    """A turn that calls the interpreter. The space keeps the braces of JSON apart from the marks."""
    call = json.dumps({"name": "code_interpreter", "arguments": {"code": code}})[:-1]
    return "{{<tool_call>\n" + call.replace("}}", "} }") + " }\n</tool_call>}}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served_code(start_gateway):
    async with start_gateway(code=CodeConfig(code_containers=3, code_seconds=60)) as (client, state):
        yield openai.AsyncOpenAI(base_url="http://test/v1", api_key="none", http_client=client, max_retries=0), state


async def test_a_cell_runs_and_the_model_goes_on(served_code):
    client, _ = served_code
    answer = await client.responses.create(
        model="echo", input=cell("x = 20\n" + say("all done") + "\nx + 1"), tools=[AUTO], include=OUTPUTS
    )
    call, message = answer.output
    assert (call.type, call.status, call.code.splitlines()[0]) == ("code_interpreter_call", "completed", "x = 20")
    assert [each.logs for each in call.outputs] == ["{{all done}}\n21"]
    assert answer.output_text == "all done" and message.role == "assistant" and answer.status == "completed"
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    # The container, with its names, is the conversation's.
    more = await client.responses.create(
        model="echo", input=cell("x += 1\n" + say("again") + "\nx"), tools=[AUTO], previous_response_id=answer.id
    )
    assert more.output[0].container_id == call.container_id and more.output[0].outputs is None
    named = {"type": "code_interpreter", "container": call.container_id}
    third = await client.responses.create(model="echo", input=cell(say("x") + "\nx"), tools=[named], include=OUTPUTS)
    assert third.output[0].outputs[0].logs.endswith("21")
    await client.containers.delete(call.container_id)
    with pytest.raises(openai.NotFoundError, match="has expired"):
        await client.responses.create(model="echo", input="hi", tools=[named])
    fresh = await client.responses.create(
        model="echo", input=cell(say("new")), tools=[AUTO], previous_response_id=answer.id
    )
    assert fresh.output[0].container_id != call.container_id
    await client.containers.delete(fresh.output[0].container_id)


async def test_the_stream_tells_each_step(served_code):
    client, _ = served_code
    kinds, last = [], None
    stream = await client.responses.create(model="echo", input=cell(say("ok")), tools=[AUTO], stream=True)
    async for event in stream:
        kinds.append(event.type)
        last = event
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.code_interpreter_call.in_progress",
        "response.code_interpreter_call_code.delta",
        "response.code_interpreter_call_code.done",
        "response.code_interpreter_call.interpreting",
        "response.code_interpreter_call.completed",
        "response.output_item.done",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert last.response.output[0].code == say("ok")
    await client.containers.delete(last.response.output[0].container_id)


async def test_the_same_request_has_the_same_prompt_and_numbers(served_code):
    client, state = served_code
    histories = []
    for _ in range(2):
        code = "import random\n" + say("fixed") + "\nrandom.random(), {'b', 'a'}"
        answer = await client.responses.create(model="echo", input=cell(code), tools=[AUTO])
        histories.append(state.responses.get(answer.id).messages)
        await client.containers.delete(answer.output[0].container_id)
    assert histories[0] == histories[1]
    assert [message["role"] for message in histories[0]] == ["user", "assistant", "tool", "assistant"]


async def test_errors_of_a_cell_are_the_models_to_see(served_code):
    client, state = served_code
    code = "import sys\nsys.stdout.write(chr(123) * 2 + 'sorry' + chr(125) * 2 + chr(10))\n1 / 0"
    answer = await client.responses.create(model="echo", input=cell(code), tools=[AUTO], include=OUTPUTS)
    assert "ZeroDivisionError" in answer.output[0].outputs[0].logs and answer.output_text == "sorry"
    container = answer.output[0].container_id
    named = {"type": "code_interpreter", "container": container}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state.containers, "config", CodeConfig(code_containers=3, code_seconds=2))
        endless = say("late") + "\nwhile True: pass"
        slow = await client.responses.create(model="echo", input=cell(endless), tools=[named], include=OUTPUTS)
    assert "KeyboardInterrupt" in slow.output[0].outputs[0].logs and slow.output_text == "late"
    await client.containers.delete(container)


async def test_limits_and_refusals_are_named(served_code):
    client, _ = served_code
    endless = "print(open('again').read())"
    made = await client.containers.create(name="loop")
    again = cell(endless).encode()
    await client.containers.files.create(made.id, file=("again", again))
    answer = await client.responses.create(
        model="echo",
        input=cell(endless),
        tools=[{"type": "code_interpreter", "container": made.id}],
        max_tool_calls=2,
        include=OUTPUTS,
    )
    ran = [item for item in answer.output if item.type == "code_interpreter_call"]
    assert len(ran) == 2 and answer.status == "completed"  # then the tool is not offered any more
    with pytest.raises(openai.BadRequestError, match="file_ids"):
        auto = {"type": "auto", "file_ids": ["file-1"]}
        await client.responses.create(model="echo", input="x", tools=[{"type": "code_interpreter", "container": auto}])
    with pytest.raises(openai.BadRequestError, match="memory_limit: 64g"):
        await client.containers.create(name="large", memory_limit="64g")
    with pytest.raises(openai.BadRequestError, match="outputs"):
        await client.responses.create(model="echo", input=[ran[0].model_dump() | {"outputs": None}], tools=[AUTO])
    others = [await client.containers.create(name=str(n)) for n in range(2)]
    with pytest.raises(openai.RateLimitError, match="3 containers are in use"):
        await client.responses.create(model="echo", input=cell("1"), tools=[AUTO])
    for each in (made, *others):
        await client.containers.delete(each.id)
    short = await client.responses.create(model="echo", input=cell("1"), tools=[AUTO], max_output_tokens=10)
    assert short.status == "incomplete"


async def test_a_forced_call_is_made_once_and_items_come_back_as_input(served_code):
    client, _ = served_code
    text = '{{{"code": "6 * 7"} }}'
    forced = {"type": "code_interpreter"}
    answer = await client.responses.create(
        model="echo", input=text, tools=[AUTO], tool_choice=forced, include=OUTPUTS, max_tool_calls=1
    )
    call = answer.output[0]
    assert (call.code, call.outputs[0].logs, len(answer.output)) == ("6 * 7", "42", 2)
    items = [item.model_dump(exclude_none=True) for item in answer.output]
    after = await client.responses.create(
        model="echo", input=[*items, {"role": "user", "content": cell(say("yes") + "\n_")}], tools=[AUTO]
    )
    assert after.output[0].container_id == call.container_id and after.output_text == "yes"
    await client.containers.delete(call.container_id)


async def test_a_call_of_the_clients_own_tool_is_handed_over(served_code):
    client, _ = served_code
    own = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}
    look = '<tool_call>\n{"name": "look", "arguments": {} }\n</tool_call>'
    text = cell("x = 5")[:-2] + look + "}}"
    first = await client.responses.create(model="echo", input=text, tools=[AUTO, own])
    assert [item.type for item in first.output] == ["code_interpreter_call", "function_call"]
    given = {"type": "function_call_output", "call_id": first.output[1].call_id, "output": cell("x")}
    second = await client.responses.create(
        model="echo", input=[given], tools=[AUTO], previous_response_id=first.id, include=OUTPUTS
    )
    assert second.output[0].outputs[0].logs == "5"
    assert second.status == "incomplete"  # it would go on for ever; the context is what ends it
    await client.containers.delete(first.output[0].container_id)


async def test_containers_and_their_files(served_code):
    client, state = served_code
    made = await client.containers.create(name="mine", expires_after={"anchor": "last_active_at", "minutes": 5})
    assert (made.name, made.expires_after.minutes, made.status) == ("mine", 5, "running")
    assert [each.id for each in (await client.containers.list()).data] == [made.id]
    sent = await client.containers.files.create(made.id, file=("in.csv", b"a,b\n1,2\n"))
    assert (sent.bytes, sent.source, sent.path) == (8, "user", f"{HOME}/in.csv")
    await state.containers.run(made.id, "open('r.txt', 'w').write('done')")
    files = {each.path: each for each in (await client.containers.files.list(made.id)).data}
    assert files[f"{HOME}/r.txt"].source == "assistant"
    content = await client.containers.files.content.retrieve(files[f"{HOME}/r.txt"].id, container_id=made.id)
    assert content.read() == b"done"
    await client.containers.files.delete(sent.id, container_id=made.id)
    for wrong in (sent.id, "cfile_%%%"):
        with pytest.raises(openai.NotFoundError):
            await client.containers.files.retrieve(wrong, container_id=made.id)
    with pytest.raises(openai.BadRequestError, match="multipart"):
        await client.containers.files.create(made.id, extra_body={"file_id": "f"})
    await client.containers.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        await client.containers.retrieve(made.id)


async def test_who_leaves_interrupts_the_cell(served_code):
    client, state = served_code
    made = await client.containers.create(name="slow")
    code = "import time\nx = 1\nopen('begun', 'w').close()\nwhile True: time.sleep(1)"
    patient = replace(state.containers.config, code_seconds=600)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state.containers, "config", patient)
        running = asyncio.ensure_future(state.containers.run(made.id, code))
        await until(lambda: made_file(state, made.id, "begun"))
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(running, 120)
    assert (await state.containers.run(made.id, "x")).logs == "1"
    await client.containers.delete(made.id)


async def test_an_idle_container_expires(start_gateway):
    async with start_gateway(code=CodeConfig(code_containers=1, code_idle_seconds=0.4)) as (client, state):
        made = (await client.post("/v1/containers", json={"name": "brief"})).json()
        await until(lambda: not state.containers.alive(made["id"]))
        gone = await client.get(f"/v1/containers/{made['id']}")
        assert gone.status_code == 404 and "expired" in gone.json()["error"]["message"]
        state.containers.config = CodeConfig(code_containers=1)
        again = await asyncio.to_thread(state.containers.create)  # its place is free again
        assert state.containers.all() == [again]


async def test_a_server_that_stops_waits_for_no_cell(start_gateway):
    async with start_gateway(code=CodeConfig(code_containers=1, code_seconds=600)) as (_, state):
        made = await asyncio.to_thread(state.containers.create)
        loop = "while True:\n    try:\n        while True: pass\n    except KeyboardInterrupt: pass"
        stubborn = f"open('begun', 'w').close()\n{loop}"
        running = asyncio.ensure_future(state.containers.run(made.id, stubborn))
        await until(lambda: made_file(state, made.id, "begun"))
        await asyncio.wait_for(state.containers.aclose(), 120)
        assert "KernelDied" in (await running).logs
        with pytest.raises(StatepoolError):
            await state.containers.run("cntr_late", "1")


async def test_without_a_sandbox_no_code_is_run(start_gateway):
    async with start_gateway() as (client, _):
        answer = await client.post("/v1/responses", json={"input": "x", "tools": [AUTO]})
        assert answer.status_code == 400 and "--sandbox" in answer.json()["error"]["message"]
        assert (await client.post("/v1/containers", json={"name": "x"})).status_code == 400


async def test_what_the_model_sees_is_bounded():
    assert code_in('{"code": "1"}') == "1" and code_in("[]") is None and code_in("{") is None
    assert seen(Outcome("")) == "(no output)" and seen(Outcome("", ("x",))) == "[1 figure(s) shown to the user]"
    long = seen(Outcome("a" * 20_000 + "b" * 20_000))
    assert long.startswith("aaa") and long.endswith("bbb") and "24000 characters left out" in long
