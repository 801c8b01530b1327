"""The Python tool in both of its places: what it prints, what it forgets, what it survives."""

import pytest

from statepool.core.errors import InvalidConfig, InvalidRequest
from statepool.train.dialogue import ToolBroken, ToolTimeout
from statepool.train.python_tool import Interpreter, PythonLimits, PythonTool


@pytest.fixture
def interpreter():
    interpreter = Interpreter(PythonLimits(seconds=10.0, output=1000))
    yield interpreter
    interpreter.close()


def test_a_call_leaves_nothing_to_the_next(interpreter):
    assert interpreter.run("x = 1; import json; print(x)") == "1\n"
    assert interpreter.run("print('x' in globals(), 2)") == "False 2\n"
    assert interpreter.run("import sys; print('statepool' in sys.modules)") == "False\n"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print(1", "SyntaxError"),
        ("import sys; print('a'); sys.exit(3)", "a"),
        ("x = bytearray(2 << 30)", "MemoryError"),
        ("print('y' * 5000)", "y" * 1000),
        ("import os; os.write(1, b'hidden'); print('seen')", "seen"),
        ("print('\\ud800')", "?"),
    ],
)
def test_what_code_does_becomes_text(interpreter, code, said):
    found = interpreter.run(code)
    assert said in found
    assert len(found) <= 1000


def test_code_that_kills_its_process_says_nothing(interpreter):
    assert interpreter.run("import os; os.kill(os.getpid(), 9)") == ""
    assert interpreter.run("print('here')") == "here\n"


def test_code_that_kills_the_interpreter_ends_its_call_only(interpreter):
    with pytest.raises(ToolBroken, match="died twice"):
        interpreter.run("import os; os.kill(os.getppid(), 9); import time; time.sleep(5)")
    assert interpreter.run("print('again')") == "again\n"


def test_a_call_needs_code():
    with pytest.raises(InvalidRequest, match="argument code"):
        PythonTool(Interpreter()).call({"kode": "1"})


@pytest.fixture(scope="module")
def host():
    from statepool.train.sandbox_tool import SandboxHost

    try:
        host = SandboxHost(seconds=5.0, warm=2)
    except InvalidConfig as error:
        pytest.skip(error.message)
    yield host
    host.close()


def test_conversations_in_sandboxes_share_nothing(host):
    one, other = host.tool(0), host.tool(2)  # the same warm sandbox
    assert one.call({"code": "x = 6 * 7\nprint(x)"}) == "42"
    assert one.call({"code": "print(x + 1)"}) == "43"  # names stay, as in a notebook
    assert other.call({"code": "print(x)"}) == "NameError: name 'x' is not defined"
    assert one.call({"code": "1 / 0"}) == "ZeroDivisionError: division by zero"
    with pytest.raises(InvalidRequest, match="argument code"):
        one.call({})
    one.close()
    other.close()


@pytest.mark.parametrize("wait", ["pass", "try: time.sleep(0.01)\n    except BaseException: pass"])
def test_a_sandbox_that_takes_too_long_is_told(host, wait):
    tool = host.tool(1)
    host.seconds = 0.3
    try:
        with pytest.raises(ToolTimeout, match="longer than 0"):
            tool.call({"code": f"import time\nwhile True:\n    {wait}"})
    finally:
        host.seconds = 5.0
        tool.close()


def test_a_timeout_of_the_codes_own_is_an_answer(host):
    tool = host.tool(1)
    assert tool.call({"code": "raise TimeoutError('mine')"}) == "TimeoutError: mine"
    tool.close()


def test_a_sandbox_that_is_gone_breaks_its_tool_only(host):
    tool = host.tool(0)
    tool.call({"code": "print(1)"})
    tool._sandbox.close()
    with pytest.raises(ToolBroken, match="lost"):
        tool.call({"code": "print(1)"})
    tool.close()
    another = host.tool(0)
    assert another.call({"code": "print(2)"}) == "2"
    another.close()
