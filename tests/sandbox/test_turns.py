"""Turns that change nothing make no new moment; every turn that changes something does."""

import pytest

from statepool.core.errors import InvalidRequest

BEGIN = """
import json, math, os, random
class Thing:
    def __init__(self): self.items = []
    def look(self): return len(self.items)
things, thing, table = [Thing()], Thing(), {"a": [1, 2], "b": (3, {4})}
text, numbers, large = "some text", list(range(50)), 10**5000
def twice(x): return 2 * x
open("f", "w").write("data"); open("g", "w").write("more")
"""
NOTHING = [
    "",
    "1 + 1",
    "text",
    "print(text, len(numbers))",
    "numbers[:5]",
    "table['a'][0]",
    "sorted(numbers, reverse=True)[0]",
    "math.sqrt(numbers[4])",
    "json.dumps(table['a'])",
    "[n * n for n in numbers if n % 2]",
    "text.upper().split()",
    "if numbers:\n    print([str(n) for n in table['a']])",
    "sum(numbers) / len(numbers) > 3",
    "large % 7",
    "\0",
    "f'{text}: {max(numbers)}'",
    "text = 'some text'",
    "numbers[3] = 3",
    "1 / 0",
    "this is no Python",
    "not_there",
]
CHANGES = [
    "x = 1",
    "numbers.append(1)",
    "numbers[3] = 4",
    "table['b'] = 0",
    "table['a'][0] = 7",
    "text += '!'",
    "del text",
    "thing.items.append(1)",
    "things[0].items.append(1)",
    "thing.look = None",
    "setattr(thing, 'y', 1)",
    "Thing.z = 5",
    "twice.calls = 1",
    "twice(2)",  # it might have done anything
    "math.pi = 3",
    "os.environ['A'] = 'b'",
    "os.chdir('/tmp')",
    "random.random()",
    "import csv",
    "def twice(x): return 3 * x",
    "print = len",
    "display = 3",
    "math.pi = 3\n!ls",
    "json.codecs.register_error('mine', len)",
    "numbers.sort(key=lambda n: -n)",
    "open('f', 'a').write('more')",
    "open('new', 'w').close()",
    "os.remove('f')",
    "os.chmod('f', 0o600)",
    "f = open('f')",
    "numbers[0] = 1\n1 / 0",
    "raise SystemExit",
]
LOOKS = ["ls -la", "cat f", "wc -c < g", "grep -c data f || true", "python3 -c 'print(1)'", "env | sort | head -3"]
WRITES = [
    "echo more >> f",
    "touch g",
    "rm g",
    "mkdir d",
    "mv f h",
    "chmod 600 f",
    "ln -s f l",
    "echo x > /tmp/y",
    "echo x > /dev/shm/z",
]


@pytest.fixture(scope="module")
def agent(pool):
    from statepool.sandbox import Sandbox

    with Sandbox(pool=pool) as sandbox:
        assert sandbox.run_code(BEGIN).error is None
        with sandbox.snapshot() as moment:
            yield sandbox, moment


@pytest.mark.parametrize("cell", NOTHING)
def test_a_cell_that_changes_nothing(agent, cell):
    sandbox, moment = agent
    sandbox.rollback(moment)
    sandbox.run_code(cell)
    assert not sandbox.changed(moment)
    assert sandbox.checkpoint(moment) is moment


@pytest.mark.parametrize("cell", CHANGES)
def test_a_cell_that_changes_something(agent, cell):
    sandbox, moment = agent
    sandbox.rollback(moment)
    sandbox.run_code("len(numbers)")
    sandbox.run_code(cell)
    assert sandbox.changed(moment)


def test_commands(agent):
    sandbox, moment = agent
    for line in LOOKS:
        sandbox.rollback(moment)
        assert sandbox.commands.run(line).exit_code == 0
        assert not sandbox.changed(moment), line
    for line in WRITES:
        sandbox.rollback(moment)
        assert sandbox.commands.run(line).exit_code == 0
        assert sandbox.changed(moment), line
    sandbox.rollback(moment)
    left = sandbox.commands.start("sleep 60")
    assert sandbox.changed(moment)
    left.kill()


def test_a_checkpoint_is_a_new_moment_only_after_a_change(sandbox):
    first = sandbox.checkpoint()
    assert sandbox.checkpoint(first) is first
    sandbox.run_code("x = 1")
    with sandbox.checkpoint(first) as second:
        assert second is not first and sandbox.checkpoint(second) is second
        with pytest.raises(InvalidRequest, match="since"):
            sandbox.changed(first)
        sandbox.run_code("x = 2")
        sandbox.rollback(second)
        assert not sandbox.changed(second)
        sandbox.add_variables({"NEW": "1"})
        assert sandbox.changed(second)
        sandbox.rollback(second)
        sandbox.context.kill()
        assert sandbox.changed(second)
    first.close()


def test_arrays_count_by_content(pool):
    from statepool.sandbox import Sandbox

    with Sandbox(pool=pool) as sandbox:
        assert sandbox.run_code("import numpy as np\na, o = np.arange(9.0), np.array([[1], {}], object)").error is None
        with sandbox.snapshot() as moment:
            for cell in ("a.mean()", "np.sum(a[2:])", "a.reshape(3, 3).T @ np.ones(3)", "a[0] = 0"):
                assert sandbox.run_code(cell).error is None, cell
                assert not sandbox.changed(moment), cell
            for cell in ("a[0] = 5", "np.random.rand()", "a.tofile('f')", "o[1]['x'] = 1", "np.seterr(all='raise')"):
                sandbox.rollback(moment)
                assert sandbox.run_code(cell).error is None, cell
                assert sandbox.changed(moment), cell
