# ruff: noqa: E501  # cells are written as one line
"""What a tenant must not be able to do: leave, exhaust the machine, leave something behind."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.sandbox import channels, escapes

from statepool.sandbox import Pool, Sandbox, Template, caps
from statepool.sandbox.template import Limits

ROOT = Path(__file__).parents[2]
SMALL = Limits(
    memory_bytes=64 << 20, files_bytes=16 << 20, inodes=500, processes=32, open_files=64, output_bytes=1 << 20
)


@pytest.fixture(scope="module")
def small(pool):
    pool.add(Template("small", limits=SMALL))
    return pool


@pytest.mark.parametrize("name", escapes.ESCAPES)
def test_no_way_out(sandbox, name):
    done = sandbox.run_code(escapes.HEAD + escapes.ESCAPES[name], timeout=60)
    assert done.error is None, done.error.traceback
    assert done.text == "[]"


def test_no_way_out_for_commands(sandbox):
    sandbox.files.write(
        "try.py",
        "import sys\nsys.path.insert(0, '.')\n"
        + escapes.HEAD
        + "worked = {}\nfor name, code in "
        + repr(escapes.ESCAPES)
        + ".items():\n    lines = code.split('\\n')\n    exec('\\n'.join(lines[:-1]))\n    answer = eval(lines[-1])\n"
        "    if answer: worked[name] = answer\nprint(repr(worked) + '|' + open('/proc/self/status').read().split('CapEff:')[1].split()[0])",
    )
    done = sandbox.commands.run(f"{sys.executable} try.py")
    assert done.exit_code == 0, done.stderr
    found, capabilities = done.stdout.strip().rsplit("|", 1)
    assert (found, int(capabilities, 16)) == ("{}", 0), done


def test_two_tenants_see_nothing_of_each_other(pool):
    with Sandbox(pool=pool) as one, Sandbox(pool=pool) as other:
        code = "import os\nsorted((n, os.readlink(f'/proc/self/ns/{n}')) for n in ('pid', 'mnt', 'net', 'ipc', 'uts')), os.getuid()"
        seen = [eval(sandbox.run_code(code).text) for sandbox in (one, other)]
        assert not {link for _, link in seen[0][0]} & {link for _, link in seen[1][0]}
        assert not {link for _, link in seen[0][0]} & {
            (name, str(Path(f"/proc/self/ns/{name}").readlink())) for name, _ in seen[0][0]
        }
        if pool.driver == "ns":
            assert seen[0][1] != seen[1][1]
        one.run_code(
            "import socket\ns = socket.socket(socket.AF_UNIX)\ns.bind('\\0name')\ns.listen()\nt = socket.create_server(('127.0.0.1', 4444))"
        )
        done = other.run_code(
            "import socket\nr = []\nfor f, a in ((socket.AF_UNIX, '\\0name'), (socket.AF_INET, ('127.0.0.1', 4444))):\n"
            "    try: socket.socket(f).connect(a); r.append(a)\n    except OSError: pass\nr"
        )
        assert done.text == "[]"


EXHAUSTION = {
    "memory": "b = []\nwhile True: b.append(bytearray(1 << 20))",
    "shared memory": "import mmap\nk = []\nwhile True:\n    m = mmap.mmap(-1, 1 << 20)\n    m.write(b'x' * (1 << 20))\n    k.append(m)",
    "memfd": "import os\nwhile True:\n    os.write(os.memfd_create('m'), b'x' * (1 << 20))",
    "files": "n = 0\nwhile True:\n    open(f'/tmp/{n}', 'wb').write(b'x' * (1 << 20))\n    n += 1",
    "inodes": "n = 0\nwhile True:\n    open(f'/tmp/i{n}', 'w').close()\n    n += 1",
    "processes": "import os, time\nfor _ in range(10_000):\n    if os.fork() == 0:\n        os.setsid()\n        time.sleep(1000)",
    "threads": "import threading, time\nfor _ in range(100_000): threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()",
    "descriptors": "import os\nwhile True: os.dup(0)",
    "page tables": "import mmap\nm = mmap.mmap(-1, 1 << 36, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_NORESERVE)\nfor at in range(0, 1 << 36, 1 << 21): m[at] = 1",
    "sparse file": "open('/tmp/s', 'wb').truncate(20 << 30)",
    "watches": "import ctypes\nwhile ctypes.CDLL(None).inotify_init1(0) >= 0: pass\nraise OSError",
    "polls": "import select\nk = []\nwhile True: k.append(select.epoll())",
    "cores": "import os\nfor _ in range(20):\n    if os.fork() == 0:\n        while True: pass\nraise OSError",
    "stopped": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "pipes": "import os\nwhile True:\n    r, w = os.pipe()\n    os.set_blocking(w, False)\n    os.write(w, b'x' * 65536)",
    "recursion": "import sys\nsys.setrecursionlimit(10**9)\nf = lambda x: sorted([1], key=f)\nf(1)",
    "repr": "class A:\n    def __repr__(self): return 'x' * (1 << 31)\nA()",
    "messages": "import os\nos.write(3, b'\\xff' * 100)",
    "half a message": "import os, time\nos.write(3, b'\\xff\\x00\\x00\\x00')\ntime.sleep(1000)",
}


@pytest.mark.parametrize("name", EXHAUSTION)
def test_the_machine_and_the_next_tenant_do_not_notice(small, name):
    if small.driver != "ns" and name in ("memory", "shared memory", "memfd", "files"):
        pytest.skip("no cgroup: memory is limited per process only")
    before = _free_memory()
    with Sandbox("small", pool=small) as sandbox:
        done = sandbox.run_code(EXHAUSTION[name], timeout=1 if name == "stopped" else 8)
        assert done.error is not None, done
        assert before - _free_memory() < 1 << 30
        if name not in ("processes", "threads"):
            with Sandbox("small", pool=small) as other:
                assert other.run_code("6 * 7").text == "42"
    small.settle()
    with Sandbox("small", pool=small) as after:
        assert (
            after.run_code(
                "import os, sys\nlen([n for n in os.listdir('/tmp') if not sys.prefix.startswith(f'/tmp/{n}')]), len([p for p in os.listdir('/proc') if p.isdigit()])"
            ).text
            == "(0, 1)"
        )


def test_a_fork_bomb_that_runs_while_it_is_killed(small):
    with Sandbox("small", pool=small) as sandbox:
        sandbox.commands.start(
            ["/bin/bash", "-c", "b() { (setsid bash -c 'while :; do (setsid sleep 100 &) ; done' &) ; b; }; b"]
        )
        time.sleep(0.3)
        slot = sandbox.lease.slot
    small.settle()
    # PID 1, and who waits for the next tenant.
    assert all(len(pids) <= 2 for pids in slot.cgroup.processes().values())


TYPED = """
import fcntl, os, sys
for call, data in ((0x5412, b"x"), (0x541C, bytes([3])), (0x541C, bytes([2, 0]) + bytes(9))):
    try:
        fcntl.ioctl(0, call, data)
        print("worked", hex(call))
    except OSError as error:
        print("refused", error.errno)
print(os.isatty(0), os.getpgrp() == os.tcgetpgrp(0))
"""


def test_nothing_is_typed_into_a_terminal_from_inside(sandbox):
    """TIOCSTI and TIOCLINUX, on the terminal that controls the one who asks."""
    terminal = sandbox.commands.terminal([sys.executable, "-c", TYPED])
    seen = b""
    while data := terminal.read():
        seen += data
    terminal.close()
    assert seen.split() == [b"refused", b"1"] * 3 + [b"True", b"True"], seen


def test_who_starts_many_processes_gets_no_more_of_the_cores(pool):
    """A hundred loops in one sandbox, one in another: each as much CPU as the other, by the kernel's own count."""
    if pool.driver != "ns":
        pytest.skip("needs cgroups")
    spin = "import os\nfor _ in range({count}):\n    if os.fork() == 0:\n        while True: pass"
    with Sandbox(pool=pool) as greedy, Sandbox(pool=pool) as modest:
        greedy.run_code(spin.format(count=99))
        modest.run_code(spin.format(count=1))
        before = [one.metrics().cpu_seconds for one in (greedy, modest)]
        deadline = time.monotonic() + 60
        while (used := modest.metrics().cpu_seconds - before[1]) < 0.5:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert greedy.metrics().cpu_seconds - before[0] < 4 * used


def _free_memory():
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


SWAPPED = Template(
    "swapped", preload=("numpy", "ctypes", "decimal", "json", "locale", "random", "resource", "socket", "subprocess")
)


PROGRAMS = sorted(str(path) for path in Path("/usr/bin").iterdir() if path.is_file() and not path.is_symlink())
GIVEN = {"LOCKED": PROGRAMS[os.getpid() % len(PROGRAMS)], "NICE": str(os.nice(0))}


def _swaps(count):
    """Tenants one after the other in one slot; each looks through every channel, then leaves something in each."""
    drawn, users, pids = set(), set(), set()
    with Pool([SWAPPED], low=0, high=1, most=1) as pool:
        for number in range(count):
            domain = f"tenant {number % 3}" if number % 2 else None
            with Sandbox("swapped", pool=pool, domain=domain, env=GIVEN) as sandbox:
                pids.add(sandbox.lease.slot.pid)
                done = sandbox.run_code(channels.LOOK)
                assert done.error is None, done.error.traceback
                found, drawn_here, user = eval(done.text)
                assert found == [], number
                drawn.add(drawn_here)
                users.add(user)
                used = sandbox.metrics()
                assert used.memory_peak_bytes < 64 << 20 and used.cpu_seconds < 5 and used.oom_kills == 0
                left = sandbox.run_code(channels.LEAVE_QUIETLY if number % 4 == 3 else channels.LEAVE)
                assert left.error is None, left.error.traceback
            pool.settle()
    assert len(drawn) == count
    assert pool.driver != "ns" or len(users) == count
    assert len(pids) <= 1 + count // 1000, "one slot, not a new one for each"


def test_the_looks_see_what_was_left(pool):
    """In the same kernel every channel shows it: a look that finds nothing later is not blind."""
    pool.add(SWAPPED)
    with Sandbox("swapped", pool=pool, env=GIVEN) as sandbox:
        refused = set(eval(sandbox.run_code(channels.LEAVE).text))
        assert refused <= channels.REFUSED
        found = set(eval(sandbox.run_code(channels.LOOK).text)[0])
    assert found >= set(channels.CHANNELS) - channels.REFUSED
    assert pool.driver != "ns" or not found & channels.REFUSED


def test_nothing_is_left_for_the_next_tenant(pool):
    _swaps(8)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("part", range(4))
def test_nothing_is_left_in_ten_thousand_swaps(record_property, part):
    _swaps(2_500)
    record_property("swaps", 2_500)


def test_what_the_last_tenant_did_does_not_count_for_this_one(pool):
    if pool.driver != "ns":
        pytest.skip("needs cgroups")
    kind = Template("counted", limits=SMALL)
    with Pool([kind], low=0, high=1, most=1) as one:
        with Sandbox("counted", pool=one) as sandbox:
            slot = sandbox.lease.slot
            assert "out of memory" in sandbox.run_code(EXHAUSTION["memory"]).error.value
            sandbox.run_code("import time\nb = time.process_time()\nwhile time.process_time() < b + 0.3: pass")
            used = sandbox.metrics()
            assert used.oom_kills == 1 and used.cpu_seconds > 0.3
        one.settle()
        with Sandbox("counted", pool=one) as sandbox:
            assert sandbox.lease.slot is slot
            used = sandbox.metrics()
            assert used.oom_kills == 0 and used.cpu_seconds < 0.3 and used.memory_peak_bytes < 48 << 20
            assert "out of memory" not in sandbox.run_code("import os\nos._exit(3)").error.value


def test_an_ordinary_user_is_isolated_as_well(tmp_path):
    """The same escapes as nobody, with the system's Python, since that user may not be able to read this one."""
    python = shutil.which("python3", path="/usr/bin")
    if os.geteuid() != 0 or not any(item.name == "userns" and item.works for item in caps.probe()):
        pytest.skip("needs root to become nobody, and user namespaces")
    version = (
        python
        and subprocess.run(
            [python, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True, text=True
        ).stdout.strip()
    )
    if version != str(sys.version_info[:2]):
        pytest.skip(f"the native module is for Python {sys.version_info[:2]}; /usr/bin/python3 is {version}")
    script = tmp_path / "script.py"
    script.write_text(
        "import json\nfrom statepool.sandbox import Pool, Sandbox\nfrom tests.sandbox import escapes\n"
        "with Pool() as pool:\n"
        "    with Sandbox(pool=pool) as sandbox:\n"
        "        found = escapes.tried(sandbox)\n"
        "    with Sandbox(pool=pool) as sandbox:\n"
        "        moment = sandbox.snapshot()\n"
        "        sandbox.files.write('f', 'x')\n"
        "        sandbox.rollback(moment)\n"
        "        found |= {'rollback': 1} if sandbox.files.exists('f') else {}\n"
        "        moment.close()\n"
        "    pool.settle()\n"
        "    with Sandbox(pool=pool) as sandbox:\n"
        "        print(json.dumps([pool.driver, found, sandbox.run_code('1 + 1').text, pool.counters['reuse']]))\n"
    )
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.geteuid() and parent != Path("/") and not parent.stat().st_mode & 1:
            parent.chmod(parent.stat().st_mode | 1)
    site = next(path for path in sys.path if path.endswith("site-packages"))
    if not Path(site, "msgspec").is_dir() or any(not parent.stat().st_mode & 1 for parent in Path(site).parents):
        pytest.skip("that user cannot read the installed packages")
    done = subprocess.run(
        ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", python, script],
        env={"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}:{site}", "PYTHONDONTWRITEBYTECODE": "1", "PATH": "/usr/bin:/bin"},
        cwd="/",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == ["userns", {}, "2", 2]
