# ruff: noqa: E501  # cells are written as one line
"""Checkpoints, rollbacks and forks: memory and files together, checked by replaying the same steps from scratch."""

import mmap
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from statepool.sandbox import Limits, Pool, Sandbox, Template
from statepool.sandbox.errors import NotQuiescent, SandboxGone
from statepool.sandbox.inside import branch
from statepool.sandbox.template import HOME

LOOK = """
import os, hashlib
files = sorted((os.path.join(d, f), open(os.path.join(d, f), 'rb').read()) for d, _, fs in os.walk('/home/user') for f in fs)
repr((state, os.getcwd(), random.getstate()[1][-1], hashlib.sha256(repr(files).encode()).hexdigest()))
"""


def test_rollback_brings_back_memory_files_and_offsets(sandbox):
    sandbox.run_code(
        "state = [1]\nimport os\nos.makedirs('d')\nos.chdir('d')\nf = open('log', 'w+')\nf.write('one')\nf.flush()"
    )
    moment = sandbox.snapshot()
    done = sandbox.run_code(
        "state.append(2)\nf.write('two')\nf.flush()\nos.remove('../x') if os.path.exists('../x') else None\nopen('new', 'w').write('n')\nos.chdir('/tmp')"
    )
    assert done.error is None
    assert sandbox.files.read("d/log") == b"onetwo"
    sandbox.rollback(moment)
    done = sandbox.run_code("f.write('three')\nf.flush()\nstate, os.getcwd(), f.tell(), sorted(os.listdir('.'))")
    assert done.text == f"([1], '{HOME}/d', 8, ['log'])"
    assert sandbox.files.read("d/log") == b"onethree"
    assert sandbox.commands.run("cat log; ls", cwd=f"{HOME}/d").stdout == "onethreelog\n"


def test_a_moment_serves_many_rollbacks(sandbox):
    sandbox.run_code("import random\nrandom.seed(3)\nx = 0")
    moment = sandbox.snapshot()
    seen = set()
    for _ in range(5):
        seen.add(sandbox.run_code("x += 1\nopen('f', 'a').write('a')\n(x, random.random(), open('f').read())").text)
        sandbox.rollback(moment)
    assert len(seen) == 1


def test_a_tree_of_moments_equals_a_replay_from_scratch(pool):
    rng = random.Random(7)
    begin = "import random\nrandom.seed(1)\nstate = {}"
    with Sandbox(pool=pool) as sandbox:
        sandbox.run_code(begin)
        nodes = [([], sandbox.snapshot())]
        for step in range(20):
            past, moment = rng.choice(nodes)
            sandbox.rollback(moment)
            cell = rng.choice(
                [
                    f"state[{step}] = random.random()",
                    f"import os\nos.makedirs('d{step % 3}', exist_ok=True)\nopen('d{step % 3}/f', 'a').write('{step}')",
                    f"state.clear()\nopen('only{step}', 'w').write(str(random.random()))",
                    "import shutil, os\n[shutil.rmtree(d) for d in list(os.listdir('.')) if os.path.isdir(d)]",
                ]
            )
            assert sandbox.run_code(cell).error is None
            nodes.append(([*past, cell], sandbox.snapshot()))
        for past, moment in rng.sample(nodes, 8):
            sandbox.rollback(moment)
            there = sandbox.run_code(LOOK).text
            with Sandbox(pool=pool) as fresh:
                for cell in [begin, *past]:
                    assert fresh.run_code(cell).error is None
                assert fresh.run_code(LOOK).text == there, past


def test_forks_have_memory_files_and_random_numbers_of_their_own(sandbox):
    sandbox.run_code("import random, uuid, os\nx = 1\nopen('f', 'w').write('base')")
    kids = sandbox.fork(4)
    drawn = {
        kid.run_code(
            "x += 1\nopen('f', 'a').write(os.environ['STATEPOOL_SANDBOX'])\nrandom.random(), uuid.uuid4()"
        ).text
        for kid in kids
    }
    drawn.add(sandbox.run_code("random.random(), uuid.uuid4()").text)
    assert len(drawn) == 5
    assert sandbox.run_code("x, open('f').read()").text == "(1, 'base')"
    for kid in kids:
        assert kid.run_code("x").text == "2"
        assert kid.files.read("f") == b"base" + kid.id.encode()
        assert kid.commands.run("cat f").stdout == "base" + kid.id
    grandchild = kids[0].fork()[0]
    kids[0].close()
    sandbox.close()
    assert grandchild.run_code("x").text == "2"
    assert grandchild.files.read("f").startswith(b"base")
    for one in (*kids, grandchild):
        one.close()


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (
            "import threading, time\nthreading.Thread(target=time.sleep, args=(100,), name='sleeper').start()",
            "the thread sleeper",
        ),
        ("import socket\ns = socket.socket()", "socket"),
        (
            "import subprocess as s\np = s.Popen(['sh', '-c', 'echo; sleep 100; :'], stdout=s.PIPE)\np.stdout.readline()",
            "sleep 100",
        ),
        ("import os\nf = open('gone', 'w')\nos.remove('gone')", "deleted file"),
        (
            "import mmap\nf = open('m', 'w+b')\nf.write(b'x' * 4096)\nf.flush()\nm = mmap.mmap(f.fileno(), 4096)",
            "mapping",
        ),
    ],
)
def test_what_would_be_lost_is_refused_by_name(pool, code, why):
    with Sandbox(pool=pool) as sandbox:
        sandbox.run_code(code)
        with pytest.raises(NotQuiescent, match=why):
            sandbox.snapshot()
        assert sandbox.run_code("1 + 1").text == "2"


def test_a_closed_moment_and_a_foreign_one(pool, sandbox):
    moment = sandbox.snapshot()
    with Sandbox(pool=pool) as other, pytest.raises(Exception, match="another sandbox"):
        other.rollback(moment)
    moment.close()
    with pytest.raises(SandboxGone):
        moment.fork()


def test_pause_stops_and_resume_goes_on(pool):
    if pool.driver != "ns":
        pytest.skip("needs a freezer")
    with Sandbox(pool=pool) as sandbox:
        sandbox.run_code("x = 5")
        sandbox.commands.start("while :; do :; done")
        sandbox.pause()
        before = sandbox.metrics().cpu_seconds
        import time

        time.sleep(0.2)
        assert sandbox.metrics().cpu_seconds - before < 0.01
        with pytest.raises(Exception, match="paused"):
            sandbox.run_code("1")
        sandbox.resume()
        assert sandbox.run_code("x").text == "5"
        sandbox.pause()


def test_many_forks_are_each_their_own(sandbox):
    """More than fit in one message, and each with files, numbers and variables of its own."""
    sandbox.run_code("import os, random\nx = 7\nopen('f', 'w').write('base')")
    kids = sandbox.fork(20)
    for number, kid in enumerate(kids):
        assert kid.run_code(f"open('f', 'a').write('{number}')\nx += {number}").error is None
    look = "(x, open('f').read(), os.environ['STATEPOOL_SANDBOX'])"
    assert [kid.run_code(look).text for kid in kids] == [str((7 + n, f"base{n}", kid.id)) for n, kid in enumerate(kids)]
    assert len({kid.run_code("random.random()").text for kid in kids}) == 20
    assert sandbox.run_code("x, open('f').read()").text == "(7, 'base')"
    for kid in kids:
        kid.close()


def test_signals_and_what_runs_after_a_fork_come_back(sandbox):
    sandbox.run_code(
        "import os, signal, threading\nafter = []\nos.register_at_fork(after_in_child=lambda: after.append(os.getpid()))\n"
        "signal.signal(signal.SIGCHLD, lambda *_: after.append('child'))"
    )
    with sandbox.snapshot() as moment:
        for _ in range(2):
            sandbox.rollback(moment)
            done = sandbox.run_code("after == [os.getpid()], threading.main_thread() is threading.current_thread()")
            assert done.text == "(True, True)"
            assert (
                sandbox.run_code("os.waitpid(os.spawnlp(os.P_NOWAIT, 'true', 'true'), 0)\nafter[-1]").text == "'child'"
            )


@pytest.mark.parametrize("query", [branch._QUERY, 0])
def test_shared_mappings_are_found_by_a_linux_that_can_be_asked_and_by_one_that_cannot(monkeypatch, tmp_path, query):
    monkeypatch.setattr(branch, "_QUERY", query)
    shared, private = (tmp_path / name for name in ("shared", "private"))
    for path in (shared, private):
        path.write_bytes(bytes(mmap.PAGESIZE))
    with shared.open("r+b") as one, private.open("r+b") as other:
        mine = mmap.mmap(other.fileno(), 0, mmap.MAP_PRIVATE)
        assert not {str(shared), str(private)} & set(branch._shared())
        with mine, mmap.mmap(one.fileno(), 0):
            assert {str(shared), str(private)} & set(branch._shared()) == {str(shared)}


def test_a_moment_is_kept_between_cells(sandbox):
    began = threading.Event()
    cell = "import time\nprint('begun')\ntime.sleep(0.5)\nx = 1"
    with ThreadPoolExecutor(1) as other:
        running = other.submit(sandbox.run_code, cell, on_stdout=lambda _: began.set())
        assert began.wait(30)
        moment = sandbox.snapshot()
        assert running.result().error is None
    sandbox.run_code("x = 2")
    sandbox.rollback(moment)
    assert sandbox.run_code("x").text == "1"


def test_a_rollback_that_fails_leaves_all_as_it_was(sandbox):
    moment = sandbox.snapshot()
    sandbox.run_code("x = 2\nopen('f', 'w').write('here')")
    sandbox.lease.signal(moment.pid, 9)
    with pytest.raises(SandboxGone):
        sandbox.rollback(moment)
    assert sandbox.run_code("x, open('f').read()").text == "(2, 'here')"
    with sandbox.snapshot() as other:
        sandbox.run_code("x = 3")
        sandbox.rollback(other)
    assert sandbox.run_code("x").text == "2"


def test_moments_that_are_given_up_are_no_processes_any_more(pool):
    if pool.driver != "ns":
        pytest.skip("counts a sandbox's processes by its cgroup")
    pool.add(Template("few", limits=Limits(processes=8)))
    with Sandbox("few", pool=pool) as sandbox:
        for number in range(20):
            with sandbox.snapshot():
                assert sandbox.run_code(f"{number}").text == str(number)


def test_a_slot_whose_moment_outlives_its_sandbox_serves_again(pool):
    with Pool(low=0, high=1, most=1) as one:
        with Sandbox(pool=one) as sandbox:
            moment = sandbox.snapshot()
        moment.close()
        one.settle()
        with Sandbox(pool=one) as again:
            assert again.run_code("1 + 1").text == "2"
        assert (one.counters["cold"], one.counters["resets"]) == (1, 1)
