"""What a kernel's fork does in place of Python's hooks."""

import pytest

from statepool.sandbox import Pool, Sandbox, Template

_HOOKS = """
import os
told = []
os.register_at_fork(before=lambda: told.append("before"), after_in_child=lambda: told.append("child"))
os.register_at_fork(before=lambda: told.insert(0, "earlier"))
"""


@pytest.fixture(scope="module")
def hooked():
    with Pool([Template("hooked", warm=_HOOKS + "import sys\nsys.told = told")], low=0) as pool:
        yield pool


def test_hooks_of_a_template_are_run_as_by_a_fork_of_pythons(hooked):
    alone = "r, w = os.pipe()\nif os.fork() == 0:\n    os.write(w, repr(sys.told).encode())\n    os._exit(0)\n"
    with Sandbox("hooked", pool=hooked) as sandbox:
        first = sandbox.run_code("import os, sys\nsys.told[:]").text
        assert first == repr(["earlier", "before", "child"])
        sandbox.run_code("sys.told.clear()")
        assert sandbox.run_code(f"{alone}os.close(w)\nos.wait()\nos.read(r, 1000).decode()").text == repr(first)


def test_hooks_of_a_cell_are_run_in_what_grows_from_it(hooked):
    with Sandbox("hooked", pool=hooked) as sandbox:
        sandbox.run_code("import os\nmine = []\nos.register_at_fork(after_in_child=lambda: mine.append(1))")
        (kid,) = sandbox.fork(1)
        with kid:
            assert (kid.run_code("mine").text, sandbox.run_code("mine").text) == ("[1]", "[]")


def test_the_thread_knows_its_own_id_and_locks_work(hooked):
    look = "import threading\nthreading.main_thread().native_id == threading.get_native_id()"
    work = "import logging\nt = threading.Thread(target=logging.warning, args=['x'])\nt.start()\nt.join()"
    with Sandbox("hooked", pool=hooked) as sandbox:
        assert sandbox.run_code(look).text == "True"
        assert sandbox.run_code(work).error is None
        (kid,) = sandbox.fork(1)
        with kid:
            assert kid.run_code(look).text == "True"
            assert kid.run_code(work).error is None
