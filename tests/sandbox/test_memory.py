"""Shared data: sealed memory, and pages from another process."""

import contextlib
import mmap
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from statepool.core.errors import InvalidRequest, Unavailable
from statepool.sandbox import Sandbox, Template, caps
from statepool.sandbox.inside import attach
from statepool.sandbox.memory import Dataset, Remote
from statepool.sandbox.pages import CHUNK, PageServer


@pytest.fixture(scope="module")
def numeric(pool):
    pool.add(Template("numeric", preload=("numpy",)))
    return pool


def test_attached_data_is_equal_shared_and_cannot_be_changed_for_others(numeric):
    rng = np.random.default_rng(1)
    arrays = {
        "table": rng.random((500, 40)),
        "words": rng.integers(0, 9, 1000),
        "raw": b"bytes",
        "none": np.zeros((0, 3)),
    }
    dataset = Dataset(arrays)
    with Sandbox("numeric", pool=numeric) as one, Sandbox("numeric", pool=numeric) as other:
        for sandbox in (one, other):
            dataset.attach(sandbox)
            assert float(sandbox.run_code("float(table.sum())").text) == arrays["table"].sum()
            assert sandbox.run_code("words.sum(), bytes(raw), none.shape").text.startswith(
                f"(np.int64({arrays['words'].sum()}), b'bytes'"
            )
        one.run_code("table[:] = 7")
        assert other.run_code("float(table[0, 0])").text == repr(float(arrays["table"][0, 0]))
        kid = other.fork()[0]
        kid.run_code("table[0, 0] = -1")
        assert other.run_code("float(table[0, 0])").text == repr(float(arrays["table"][0, 0]))
        kid.close()
    with pytest.raises(InvalidRequest, match="identifier"):
        Dataset({"not a name": np.zeros(3)})
    dataset.close()


def _in_large_pages(pid, inode):
    """Bytes of one file that a process has mapped by large pages."""
    maps = re.findall(rf" {inode} .*((?:\n[A-Z]\w+:.*)*)", Path(f"/proc/{pid}/smaps").read_text())
    return 1024 * sum(map(int, re.findall(r"ShmemPmdMapped: +(\d+)", "".join(maps))))


def test_large_data_needs_no_tables_of_small_pages(numeric):
    if numeric.driver != "ns":
        pytest.skip("needs cgroups to find the kernel")
    dataset = Dataset({"big": np.ones(8 << 20, np.uint8)})
    space, begin = attach.mapped(dataset.fd, dataset.length, mmap.MAP_PRIVATE)
    with space, Sandbox("numeric", pool=numeric) as sandbox:
        assert space[begin :: 1 << 20][:8] == b"\1" * 8
        inode = os.fstat(dataset.fd).st_ino
        if not (here := _in_large_pages("self", inode)):
            pytest.skip("this Linux makes no large pages of memory that is there")
        dataset.attach(sandbox)
        assert sandbox.run_code("int(big[:: 1 << 20].sum())").text == "8"
        slot = sandbox.lease.slot
        (pid,) = slot.cgroup.members() - slot.own  # now that it has been forked
        assert _in_large_pages(pid, inode) == here == 8 << 20
    dataset.close()


def _private(text):
    """Bytes that a process shares with nobody, as Linux counts them."""
    return 1024 * sum(int(part) for part in re.findall(r"Private_Dirty: +(\d+)", text))


def _shrinks(sandbox, seconds):
    """Whether it is less than in a cell, before the kernel has waited at all."""
    slot = sandbox.lease.slot
    before = _private(sandbox.run_code("open('/proc/self/smaps_rollup').read()").text)
    (pid,) = slot.cgroup.members() - slot.own
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if _private(Path(f"/proc/{pid}/smaps_rollup").read_text()) < 0.9 * before:
            return True
        time.sleep(0.1)
    return False


def test_what_an_idle_kernel_did_not_change_is_shared_again(pool):
    """A cell writes to hundreds of pages, most of which hold the same afterwards: counters that went up and down."""
    if pool.driver != "ns":
        pytest.skip("needs cgroups to find the kernel")
    with Sandbox(pool=pool) as sandbox:
        state = "import random\nvalues = {n: [str(n)] for n in range(3000)}\n"
        state += "def total():\n    return sum(map(int, map(''.join, values.values())))\ntotal()"
        assert sandbox.run_code(state).text == "4498500"
        assert _shrinks(sandbox, 30)
        for _ in range(3):
            assert sandbox.run_code("values[0] = ['1']\ntotal()").text == "4498501"
            assert _shrinks(sandbox, 30)
        with sandbox.snapshot() as moment, moment.fork(1)[0] as kid:
            assert kid.run_code("total() + len(random.sample(range(9), 3))").text == "4498504"
        assert sandbox.run_code("import gc\ngc.collect() >= 0 and total()").text == "4498501"


def test_memory_that_was_freed_and_taken_again_keeps_what_it_holds(pool):
    """At the same addresses, with the bytes of before: it looks like the template's, and is not."""
    if pool.driver != "ns":
        pytest.skip("needs cgroups to find the kernel")
    pool.add(Template("large", preload=("numpy",), warm="import numpy, sys\nsys.kept = numpy.ones(5_000_000)"))
    with Sandbox("large", pool=pool) as sandbox:
        cell = "import numpy, sys\nbefore = sys.kept.ctypes.data\ndel sys.kept\n"
        cell += "again = numpy.ones(5_000_000)\nagain.ctypes.data == before, int(again.sum())"
        assert sandbox.run_code(cell).text == "(True, 5000000)"
        _shrinks(sandbox, 5)
        assert sandbox.run_code("int(again.sum())").text == "5000000"


def test_large_objects_of_the_template_grow(pool):
    """Past where the template's memory ends as a file."""
    warm = "import sys\nsys.numbers = list(range(1_000_000))\nsys.octets = bytearray(b'x') * (8 << 20)"
    pool.add(Template("growing", warm=warm))
    with Sandbox("growing", pool=pool) as sandbox:
        cell = "import sys\nsys.octets.extend(bytes(300 << 20))\n[sys.octets.count(n) >> 20 for n in (b'x', 0)]"
        assert sandbox.run_code(cell).text == "[8, 300]"
        assert (
            sandbox.run_code("sys.octets.clear()\nsys.numbers.extend([1] * 20_000_000)\nsum(sys.numbers)").text
            == "500019500000"
        )


def test_a_kernel_with_threads_gives_nothing_back(pool):
    """A thread may write to a page between the look at it and its return."""
    if pool.driver != "ns":
        pytest.skip("needs cgroups to find the kernel")
    with Sandbox(pool=pool) as sandbox:
        assert sandbox.run_code("1 + 1").text == "2"
        sandbox.run_code("import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()")
        assert not _shrinks(sandbox, 3)


SERVER = """
import socket, sys
import numpy as np
from statepool.sandbox.memory import Dataset
from statepool.sandbox.pages import PageServer
server = socket.create_server(("127.0.0.1", 0))
pages = PageServer(server)
pages.publish("big", Dataset({"big": np.arange(1 << 21, dtype=np.int64)}))
print(server.getsockname()[1], flush=True)
sys.stdin.read()
"""


@pytest.fixture
def server():
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield ("127.0.0.1", int(process.stdout.readline())), process
    process.communicate()


def _works():
    return any(item.name == "userfaultfd" and item.works for item in caps.probe())


def test_pages_come_from_another_process_when_they_are_touched(numeric, server):
    if not _works():
        pytest.skip("this host has no userfaultfd")
    address, _ = server
    with Sandbox("numeric", pool=numeric) as sandbox:
        remote = Remote.open(sandbox, address, "big")
        assert sandbox.run_code("int(big[5]), int(big[1 << 20])").text == f"(5, {1 << 20})"
        assert remote.order == [0, (1 << 23) // CHUNK] and remote.bytes_fetched == 2 * CHUNK
        touched = remote.order
        remote.bring_back()
        assert remote.complete
        kid = sandbox.fork()[0]
        assert kid.run_code("int(big.sum())").text == str(sum(range(1 << 21)))
        kid.close()
    with Sandbox("numeric", pool=numeric) as sandbox:
        remote = Remote.open(sandbox, address, "big", first=touched)
        assert sandbox.run_code("int(big[5]), int(big[1 << 20])").text == f"(5, {1 << 20})"
        assert set(remote.order) <= set(touched) and remote.bytes_fetched == 2 * CHUNK
        remote.close()
        with pytest.raises(InvalidRequest, match="no such dataset"):
            Remote.open(sandbox, address, "other")
    with socket.socket() as closed, Sandbox("numeric", pool=numeric) as sandbox:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(Unavailable):
            Remote.open(sandbox, closed.getsockname(), "big")


def test_who_reads_in_order_is_read_ahead_for(numeric, server):
    if not _works():
        pytest.skip("this host has no userfaultfd")
    with Sandbox("numeric", pool=numeric) as sandbox:
        remote = Remote.open(sandbox, server[0], "big")
        code = "all((big[i : i + 512] == np.arange(i, i + 512)).all() for i in range(0, 1 << 21, 512))"
        assert sandbox.run_code(f"import numpy as np\n{code}").text == "True"
        until = time.monotonic() + 20
        while not remote.complete and time.monotonic() < until:
            time.sleep(0.01)  # the last page is there before it is counted
        assert remote.complete and sorted(remote.order) == list(range((1 << 24) // CHUNK))
        assert remote.bytes_fetched == 1 << 24


@pytest.mark.parametrize("when", ["before", "between", "while all is fetched"])
def test_a_page_server_that_dies_ends_what_needs_it(numeric, server, when):
    if not _works():
        pytest.skip("this host has no userfaultfd")
    address, process = server
    with Sandbox("numeric", pool=numeric) as sandbox:
        remote = Remote.open(sandbox, address, "big")
        if when != "before":
            assert sandbox.run_code("int(big[5])").text == "5"
        process.kill()
        process.wait()
        if when == "while all is fetched":
            with pytest.raises(Unavailable, match=r"gone|reset"):
                sandbox.snapshot()
        done = sandbox.run_code("int(big[-1])", timeout=60)
        assert done.error.name == "KernelDied", done
        assert "gone" in remote.failure or "reset" in remote.failure
        assert sandbox.run_code("1 + 1").text == "2"


def test_a_chunk_that_was_changed_is_not_shown(numeric):
    if not _works():
        pytest.skip("this host has no userfaultfd")
    pages = PageServer(socket.create_server(("127.0.0.1", 0)))
    with contextlib.closing(Dataset({"big": np.arange(1 << 16)})) as dataset:
        pages.publish("big", dataset)
    name = pages._sets["big"].chunks[1]
    data, count = pages._chunks[name]
    pages._chunks[name] = (data[:-1] + bytes([data[-1] ^ 1]), count)
    with Sandbox("numeric", pool=numeric) as sandbox:
        remote = Remote.open(sandbox, pages._server.getsockname(), "big")
        assert sandbox.run_code("int(big[3])").text == "3"
        assert sandbox.run_code("int(big[-1])", timeout=60).error.name == "KernelDied"
        assert "hash" in remote.failure
    pages.close()


def test_a_snapshot_waits_for_missing_pages(numeric, server):
    if not _works():
        pytest.skip("this host has no userfaultfd")
    with Sandbox("numeric", pool=numeric) as sandbox:
        remote = Remote.open(sandbox, server[0], "big")
        sandbox.run_code("int(big[0])")
        with sandbox.snapshot() as moment:
            assert remote.complete
            sandbox.run_code("big[0] = 9")
            sandbox.rollback(moment)
            assert sandbox.run_code("int(big[0]), int(big[-1])").text == f"(0, {(1 << 21) - 1})"


def test_equal_chunks_are_held_once():
    server = PageServer(socket.create_server(("127.0.0.1", 0)))
    same = Dataset({"a": np.tile(np.arange(CHUNK // 8), 4)})
    assert server.publish("one", same) == CHUNK
    assert server.publish("two", same) == 0
    server.forget("one")
    assert server.held_bytes == CHUNK
    server.forget("two")
    assert server.held_bytes == 0
    server.close()
    same.close()
