"""What goes wrong around the manager: no descriptors, no room, no processes, a clock that jumps, floods, rebuilds."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.sandbox.conftest import USABLE

from statepool.core.errors import InvalidRequest, NotFound
from statepool.sandbox import Pool, Sandbox, Template, cgroup
from statepool.sandbox.errors import SandboxError
from statepool.sandbox.slots import Slot
from statepool.sandbox.template import HOME, Limits

HEAD = """
import json, os, resource, sys, time
from pathlib import Path
from statepool.core.errors import StatepoolError
from statepool.sandbox import Pool, Sandbox, cgroup
def descriptors():
    return {int(name) for name in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{name}")}
def groups():
    mine = f"{cgroup.PREFIX}{os.getpid()}-"
    return [str(path) for root in cgroup.roots().values() for path in root.iterdir() if path.name.startswith(mine)]
def use(pool):
    with Sandbox(pool=pool) as one:
        assert one.run_code("x = 1\\nx").text == "1"
        assert one.commands.run("echo said").stdout == "said\\n"
        one.files.write("f", "kept")
        with one.snapshot() as moment:
            one.rollback(moment)
        (kid,) = one.fork(1)
        with kid:
            assert kid.run_code("x, open('f').read()").text == "(1, 'kept')"
        terminal = one.commands.terminal()
        terminal.kill()
        terminal.close()
def tried(pool):
    try:
        use(pool)
    except (StatepoolError, OSError) as error:
        return str(error)
    finally:
        pool.settle()
"""
STARVED = """
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
def room(extra):
    have, number = descriptors(), 0
    while extra or number in have:
        extra -= number not in have
        number += 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
before, said = descriptors(), []
with Pool(low=0) as pool:
    use(pool)
    for anew in (True, False):
        for extra in range(100):
            if anew:
                pool.end_waiting("py")
            room(extra)
            said.append(tried(pool))
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            if said[-1] is None:
                break
    busy = pool.busy()
    use(pool)
print(json.dumps([said, busy, len(before), len(descriptors()), groups()]))
"""
FULL = """
folder, filler = Path(sys.argv[1]), Path(sys.argv[1]) / "filler"
def fill(pool):
    pad = -(folder / "ledger").stat().st_size % 4096  # no room in the journal's last page either
    pool._ledger.write(pad="x" * ((pad - 20) % 4096))
    with filler.open("wb", 0) as file:
        try:
            while True:
                file.write(bytes(512))
        except OSError:
            pass
said = []
with Pool(folder=folder, low=0) as pool:
    said.append(tried(pool))
    for _ in range(2):
        fill(pool)
        for _ in range(2):
            pool.end_waiting("py")
            said.append(tried(pool))
        filler.unlink()
        said.append(tried(pool))
    fill(pool)
    pool.end_waiting("py")
    said.append(tried(pool))
print(json.dumps([said, groups(), pool.busy()]))
"""
CROWDED = """
mine = Path(sys.argv[1])
said = []
with Pool(low=0) as pool:
    said.append(tried(pool))
    (mine / "cgroup.procs").write_text(str(os.getpid()))
    (mine / "cgroup.procs").write_text(str(pool._shelves["py"].zygote.pid))
    for most in ("1", "max"):
        (mine / "pids.max").write_text(most)
        while pool._making:
            time.sleep(0.01)
        pool.end_waiting("py")
        said.append(tried(pool))
(mine.parent / "cgroup.procs").write_text(str(os.getpid()))
print(json.dumps([said, groups(), pool.busy()]))
"""


def _manager(script, *arguments):
    if not USABLE:
        pytest.skip("no driver works here")
    command = [sys.executable, "-W", "error", "-c", HEAD + script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0 and "ResourceWarning" not in done.stderr, done.stderr
    return json.loads(done.stdout)


def test_descriptors_run_out_at_every_step():
    """One more is free each time: whatever asks for the next one fails, says so, and keeps nothing."""
    said, busy, before, after, groups = _manager(STARVED)
    assert said.count(None) == 2 and len(said) > 15  # with a new slot, and with one that waits
    assert all("Too many open files" in text for text in said if text is not None), said
    assert (busy, after, groups) == (0, before, [])


SPAWN = [
    *(
        (call, 1)
        for call in ("clone", "unshare", "pivot_root", "mknodat", "symlink", "sethostname", "socket", "umount2")
    ),
    *(("mount", when) for when in (1, 5, 9, 14, 18, 22)),
    *(("mkdir", when) for when in (1, 9)),
    *(
        (call, 1)
        for call in ("chroot", "prlimit64", "setgroups", "setresgid", "setresuid", "capset", "seccomp", "close_range")
    ),
    *(("prctl", when) for when in (3, 20, 66, 68)),
]
"""System calls of a slot's making, and of its kernel's confinement, and which of them fails."""


@pytest.fixture(scope="module")
def alone():
    if "ns" not in USABLE or not shutil.which("strace"):
        pytest.skip("needs strace and the driver ns")
    with Pool(low=0, high=0) as made:  # every sandbox has a new slot
        yield made


@pytest.mark.parametrize(("call", "when"), SPAWN)
def test_memory_that_runs_out_at_a_step_of_a_slots_making(alone, call, when):
    """Strace makes one system call fail in whatever the zygote forks: there is no sandbox then, least of all a weaker
    one, nothing is left, and the next one is made.
    """
    zygote = alone._shelves["py"].zygote
    zygote.start()
    fault = f"inject={call}:error=ENOMEM:when={when}"
    command = ["strace", "-f", "-q", "-e", f"trace={call}", "-e", fault, "-p", str(zygote.pid)]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        status = Path(f"/proc/{zygote.pid}/status")
        _until(lambda: "TracerPid:\t0\n" not in status.read_text())
        with contextlib.suppress(SandboxError), Sandbox(pool=alone) as sandbox:
            done = sandbox.run_code("print(open('/proc/self/status').read())")
            held = ("Seccomp:\t2", "NoNewPrivs:\t1", "CapBnd:\t0000000000000000")
            assert done.error or all(part in done.logs.stdout for part in held)
    finally:
        tracer.send_signal(signal.SIGINT)
        said = tracer.communicate(timeout=20)[1]
    assert "(INJECTED)" in said, said
    alone.settle()
    with Sandbox(pool=alone) as sandbox:
        assert sandbox.run_code("1 + 1").text == "2"
    alone.settle()
    _until(lambda: not Path(f"/proc/{zygote.pid}/task/{zygote.pid}/children").read_text())


def _until(done, seconds=20):
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_disk_that_is_full(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small file system")
    folder = tmp_path / "state"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=711", "tmpfs", folder], check=True)
    try:
        said, groups, busy = _manager(FULL, folder)
        assert (groups, busy, [*folder.iterdir()]) == ([], 0, [])
    finally:
        subprocess.run(["umount", folder], check=True)
    full = [text is not None and "No space left on device" in text for text in said]
    assert full == [False, True, True, False, True, True, False, True], said
    assert [text for text in said if text is None] == [None] * 3


def test_no_process_may_be_made():
    root = cgroup.roots().get("pids")
    if root is None or os.geteuid() != 0:
        pytest.skip("needs root and the cgroup controller for process counts")
    mine = root / f"test-{os.getpid()}"
    mine.mkdir()
    try:
        said, groups, busy = _manager(CROWDED, mine)
    finally:
        mine.rmdir()
    assert said[0] is None and said[2] is None and "Resource temporarily unavailable" in said[1], said
    assert (groups, busy) == ([], 0)


@pytest.mark.parametrize("seconds", [-86400.0, 86400.0])
def test_a_clock_that_jumps(pool, monkeypatch, seconds):
    """Only what a calendar is asked for may change: nothing ends early, nothing is kept for longer."""
    clock = time.time
    with Sandbox(pool=pool, timeout=3600) as sandbox, Sandbox(pool=pool, timeout=1.0) as short:
        jump = threading.Timer(0.2, monkeypatch.setattr, (time, "time", lambda: clock() + seconds))
        jump.start()
        assert sandbox.run_code("import time\ntime.sleep(0.5)\n1", timeout=100).text == "1"
        assert abs(time.time() - clock() - seconds) < 100
        assert sandbox.run_code("while True: pass", timeout=0.3).error.name == "TimeoutError"
        deadline = time.monotonic() + 30
        while short.alive:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert sandbox.alive and sandbox.commands.run("echo on").stdout == "on\n"
        jump.join()


FLOOD = """
for _ in range({count}):
    done = 0
    while done < len(block): done += os.write(1, block[done:])
"""


def _flood(length):
    """A command and a cell print so much; what is kept, what is counted, and what it cost the manager in memory."""
    most = 1 << 20
    kind = Template("flood", limits=Limits(output_bytes=most))
    with Pool([kind], low=0) as pool, Sandbox("flood", pool=pool) as sandbox:
        sandbox.run_code("import os\nblock = bytes(1 << 20)")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
        before = _peak()
        done = sandbox.commands.run(f"head -c {length} /dev/zero", timeout=1000)
        cell = sandbox.run_code(FLOOD.format(count=length >> 20), timeout=1000)
        grown = _peak() - before
    for out, err in ((done.stdout, done.stderr), (cell.logs.stdout, cell.logs.stderr)):
        assert len(out) == most and f"{length - most} bytes of output were dropped" in err, err
    assert done.exit_code == 0 and cell.error is None
    assert grown < 32 << 20


def _peak():
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def test_a_flood_of_output(pool):
    _flood(64 << 20)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_ten_gigabytes_of_output(pool):
    _flood(10 << 30)


def test_orphans_are_reaped(pool):
    if pool.driver != "ns":
        pytest.skip("needs cgroups to find them")
    with Sandbox(pool=pool) as sandbox:
        sandbox.commands.run("for i in $(seq 60); do (setsid sh -c 'sleep 0.05 & exit 0' &); done", timeout=100)
        deadline = time.monotonic() + 30
        while len(left := sandbox.lease.slot.cgroup.members()) > 2:  # PID 1 and the kernel
            assert time.monotonic() < deadline, left
            time.sleep(0.01)
        states = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in left]
        assert "Z" not in states


def test_a_template_that_is_rebuilt_while_it_is_used(pool):
    code = "import os\nos.environ['KIND']"
    pool.add(Template("again", env={"KIND": "old"}))
    with Sandbox("again", pool=pool) as old:
        assert old.run_code(code).text == "'old'"
        moment = old.snapshot()
        pool.add(Template("again", env={"KIND": "new"}))
        with Sandbox("again", pool=pool) as new:
            assert new.run_code(code).text == "'new'"
            (kid,) = moment.fork(1)
            with kid:
                assert old.run_code(code).text == kid.run_code(code).text == "'old'"
                assert old.commands.run("echo $KIND").stdout == "old\n"
        moment.close()
    pool.settle()
    with Sandbox("again", pool=pool) as later:
        assert later.run_code(code).text == "'new'"


def test_a_slot_that_is_made_while_its_template_is_replaced_or_its_pool_closed_ends(pool, monkeypatch, caplog):
    made, begun, go, start = [], threading.Event(), threading.Event(), Slot.start

    def slow(slot, born):
        made.append(slot)
        begun.set()
        assert go.wait(100)
        start(slot, born)

    monkeypatch.setattr(Slot, "start", slow)
    with ThreadPoolExecutor(3) as crowd, Pool([Template("again", env={"KIND": "old"})], low=0) as small:
        filling = crowd.submit(small.fill, "again", 1)
        assert begun.wait(100)
        small.add(Template("again", env={"KIND": "new"}))
        go.set()
        filling.result(100)
        assert not made[0].alive
        with Sandbox("again", pool=small) as new:
            assert new.run_code("import os\nos.environ['KIND']").text == "'new'"
        begun.clear()
        go.clear()
        filling = crowd.submit(small.fill, "again", 8)
        assert begun.wait(100)
        closing = crowd.submit(small.close)
        while not small.closed:
            time.sleep(0.001)
        refilling = crowd.submit(small._refill, "again")
        go.set()
        with pytest.raises(SandboxError, match="closed"):
            filling.result(100)
        closing.result(100)
        refilling.result(100)
    assert "closed" not in caplog.text  # who closes it need not hear that it is
    assert not any(slot.alive for slot in made)
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{slot.pid}").exists() for slot in made):
        assert time.monotonic() < deadline
        time.sleep(0.01)


SWAP = """
import os
os.makedirs("d{path}"); open("d{path}/f", "w").write("inside")
os.symlink("/", "l")
if os.fork() == 0:
    from ctypes import CDLL
    exchange = CDLL(None).renameat2
    while True: exchange(-100, b"d", -100, b"l", 2)
"""


def test_a_path_that_changes_while_it_is_followed(pool, tmp_path):
    """A folder and a link to / change places all the time; the same path exists on the host."""
    (tmp_path / "f").write_text("outside")
    seen = set()
    with Sandbox(pool=pool) as sandbox:
        assert sandbox.run_code(SWAP.format(path=tmp_path)).error is None
        for number in range(3000):
            path = f"{HOME}/d{tmp_path}/f"
            try:
                if number % 3:
                    seen.add(sandbox.files.read(path))
                else:
                    sandbox.files.write(path, "inside")
            except (NotFound, InvalidRequest):
                seen.add(None)
        assert sandbox.files.read(f"{tmp_path}/f") == b"inside"  # written through the link, to its own root
    assert seen <= {b"inside", b"", None} and b"inside" in seen
    assert (tmp_path / "f").read_text() == "outside"
