# ruff: noqa: E501  # cells are written as one line
"""Cells against plain Python in a process of its own: same output, same exceptions, same values."""

import base64
import subprocess
import sys
import time

import pytest

CELLS = {
    "values": "a = [1, 2, 3]\nprint(sum(a), max(a))",
    "unicode": "print('naïve ☃', '\\ud83d' == '\\ud83d')",
    "error": "d = {}\nd['missing']",
    "syntax": "def f(:\n    pass",
    "recursion": "def f(n):\n    return f(n + 1)\nf(0)",
    "stderr": "import sys\nprint('out')\nprint('err', file=sys.stderr)",
    "child": "import subprocess\nsubprocess.run(['echo', 'from a child'])",
    "class": "class A:\n    def __repr__(self):\n        return 'an A'\nprint([A()])",
    "chained": "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise KeyError('k') from e",
}


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_does_what_plain_python_does(sandbox, name):
    code = CELLS[name]
    plain = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    done = sandbox.run_code(code)
    assert done.logs.stdout == plain.stdout
    if plain.returncode == 0:
        assert done.error is None
        assert done.logs.stderr == plain.stderr
    else:
        last = plain.stderr.strip().splitlines()[-1]
        shown = f"{done.error.name}: {done.error.value}"
        assert shown.splitlines()[0].startswith(last.split(" (")[0].split(":")[0])
        assert done.error.traceback.strip().splitlines()[-1].split(" (")[0] == last.split(" (")[0]


def test_state_stays_and_nothing_is_run_twice(sandbox):
    sandbox.run_code(
        "import time, itertools\ncount = itertools.count()\nborn = time.time()\nthing = object()\nmark = id(thing)"
    )
    first = sandbox.run_code("next(count), born, id(thing) == mark").text
    second = sandbox.run_code("next(count), born, id(thing) == mark").text
    assert first.startswith("(0, ") and second.startswith("(1, ")
    assert first[4:] == second[4:] and first.endswith("True)")


def test_the_last_expression_is_the_result(sandbox):
    assert sandbox.run_code("1 + 1").text == "2"
    assert sandbox.run_code("x = 3").text is None
    assert sandbox.run_code("x;").text is None
    assert sandbox.run_code("_ if False else x").text == "3"
    assert sandbox.run_code("import asyncio\nawait asyncio.sleep(0, 'slept')").text == "'slept'"


def test_shell_lines_and_valid_code_with_the_same_signs(sandbox):
    assert sandbox.run_code("!echo $((6 * 7))").logs.stdout == "42\n"
    assert sandbox.run_code("s = '''\n!echo no\n'''\nprint(s.strip())").logs.stdout == "!echo no\n"


def test_rich_forms(sandbox):
    code = "class R:\n    def _repr_html_(self):\n        return '<b>x</b>'\n    def _repr_png_(self):\n        return b'png'\n    def _repr_latex_(self):\n        raise ValueError\ndisplay(R())\nR()"
    done = sandbox.run_code(code)
    assert [result.main for result in done.results] == [False, True]
    assert done.results[0].forms["html"] == "<b>x</b>"
    assert base64.b64decode(done.results[0].forms["png"]) == b"png"
    assert "latex" not in done.results[0].forms


def test_a_timeout_interrupts_and_keeps_the_state(sandbox):
    sandbox.run_code("kept = 7")
    began = time.monotonic()
    done = sandbox.run_code("import time\ntime.sleep(60)", timeout=0.3)
    assert time.monotonic() - began < 20
    assert done.error.name == "TimeoutError" and done.timed_out
    assert sandbox.run_code("kept").text == "7"
    assert not sandbox.run_code("raise TimeoutError").timed_out


@pytest.mark.parametrize(
    "code",
    [
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass",
        "import time\nwhile True:\n    try: time.sleep(0.01)\n    except BaseException: pass",
    ],
)
def test_a_cell_that_takes_no_interrupt_is_killed_and_says_that_state_is_lost(sandbox, code):
    sandbox.run_code("kept = 7")
    done = sandbox.run_code(code, timeout=0.3)
    assert done.error.name == "TimeoutError" and "state is lost" in done.error.value
    assert sandbox.run_code("'kept' in globals()").text == "False"


@pytest.mark.parametrize(
    "code",
    [
        "import os; os._exit(3)",
        "import ctypes; ctypes.string_at(0)",
        "import os; os.close(3)",
        "import os, signal; os.kill(os.getpid(), 9)",
    ],
)
def test_a_kernel_that_ends_itself_is_reported_and_replaced(sandbox, code):
    assert sandbox.run_code(code).error.name == "KernelDied"
    assert sandbox.run_code("2 + 2").text == "4"


def test_a_cell_that_closes_its_streams_hurts_itself_only(sandbox):
    sandbox.run_code("import os\nfor fd in (0, 1, 2): os.close(fd)")
    assert sandbox.run_code("40 + 2").text == "42"
    assert sandbox.commands.run("echo said").stdout == "said\n"


def test_a_tenant_that_breaks_its_own_kernel_breaks_nothing_else(pool, sandbox):
    from statepool.sandbox import Sandbox

    sandbox.run_code(
        "import sys, json, builtins\nsys.stdout = None\njson.dumps = lambda *a, **k: '[]'\nbuiltins.print = None"
    )
    with Sandbox(pool=pool) as other:
        assert other.run_code("print('fine')").logs.stdout == "fine\n"


def test_output_is_capped(pool):
    from statepool.sandbox import Pool, Sandbox, Template
    from statepool.sandbox.template import Limits

    pool.add(Template("quiet", limits=Limits(output_bytes=1000)))
    with Sandbox("quiet", pool=pool) as sandbox:
        done = sandbox.run_code("for _ in range(100_000): print('x' * 100)\n'end'")
        assert len(done.logs.stdout) == 1000
        assert "10099000 bytes of output were dropped" in done.logs.stderr
        assert done.text == "'end'"
    assert Pool


def test_output_arrives_while_the_cell_runs(sandbox):
    seen = []
    sandbox.run_code(
        "import time\nprint('one')\ntime.sleep(0.2)\nprint('two ☃')",
        on_stdout=lambda text: seen.append((time.monotonic(), text)),
    )
    assert "".join(text for _, text in seen) == "one\ntwo ☃\n"
    assert seen[-1][0] - seen[0][0] > 0.1


def test_contexts_have_names_of_their_own(sandbox):
    other = sandbox.create_context()
    sandbox.run_code("x = 1")
    sandbox.run_code("x = 2", context=other)
    assert sandbox.run_code("x").text == "1"
    assert sandbox.run_code("x", context=other).text == "2"


def test_seed_and_hash_order_are_the_same_everywhere(pool):
    from statepool.sandbox import Sandbox

    code = "import random\nrandom.random(), list({'a', 'b', 'c', 'd'})"
    drawn = []
    for seed in (5, 5, None, None):
        with Sandbox(pool=pool, seed=seed) as sandbox:
            drawn.append(sandbox.run_code(code).text)
    assert drawn[0] == drawn[1]
    assert drawn[2] != drawn[3]
    assert {text.split(", ", 1)[1] for text in drawn} == {drawn[0].split(", ", 1)[1]}


def test_figures_become_pictures_and_numbers(sandbox):
    pytest.importorskip("matplotlib")
    done = sandbox.run_code(
        "import matplotlib.pyplot as plt\nplt.plot([1, 2, 3], [2, 4, 8], label='l')\nplt.title('T')\nplt.show()",
        timeout=100,
    )
    assert done.error is None, done.error
    picture = next(result for result in done.results if "png" in result.forms)
    assert base64.b64decode(picture.forms["png"]).startswith(b"\x89PNG")
    assert picture.forms["chart"]["elements"][0]["points"] == [[1, 2], [2, 4], [3, 8]]
