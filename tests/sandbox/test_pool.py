"""The pool: which slot is chosen, what a killed manager leaves, journals that are damaged."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.sandbox.conftest import USABLE

from statepool.core.errors import Corruption, InvalidRequest, Overloaded
from statepool.sandbox import Pool, Sandbox, Template, ledger, policy
from statepool.sandbox.errors import IsolationUnavailable, SandboxError, SandboxGone, SlotFailed

PARKED = st.builds(
    policy.Parked,
    template=st.sampled_from("ab"),
    domain=st.sampled_from([None, "x", "y"]),
    since=st.floats(0, 100),
    uses=st.integers(0, 3),
)


@given(st.lists(PARKED, max_size=6), st.sampled_from("ab"), st.sampled_from([None, "x", "y"]), st.integers(0, 4))
def test_the_cheapest_start_that_keeps_domains_apart(parked, template, domain, busy):
    most = 6
    choice = policy.choose(parked, template, domain, len(parked) + busy, most)
    same = [slot for slot in parked if slot.template == template]
    if same:
        slot = parked[choice.index]
        assert choice.kind == "reuse" and slot in same
        clean = [other for other in same if other.uses == 0 or other.domain == domain]
        assert choice.fresh_network == (not clean)
        assert slot.since == max(other.since for other in (clean or same))
    elif len(parked) + busy < most:
        assert choice.kind == "cold"
    elif parked:
        assert choice.kind == "switch" and parked[choice.index].since == min(slot.since for slot in parked)
    else:
        assert choice is None


@given(st.integers(0, 9), st.integers(1, 30), st.floats(0, 5), st.floats(0.001, 1), st.floats(0, 2))
def test_a_slot_that_comes_back_is_waited_for(out, asking, lease, start, waited):
    if not policy.returns_soon(out, asking, lease, start, waited):
        return
    assert out and waited < start
    back = [(1 + turn) * lease / out for turn in range(asking)]  # evenly, as they are taken
    assert back[-1] < start * (1 + 1e-9)
    assert policy.returns_soon(out + 1, asking, lease, start, waited)


def test_a_burst_of_short_tenants_is_served_by_few_slots_and_as_many_wait_for_the_next(pool):
    with Pool(low=1, high=6, most=40) as burst:
        burst.fill("py", 2)

        def one(_):
            with Sandbox(pool=burst) as sandbox:
                return sandbox.run_code("6 * 7").text

        with ThreadPoolExecutor(12) as crowd:
            assert [*crowd.map(one, range(48))] == ["42"] * 48
        assert burst.counters["cold"] < 12
        deadline = time.monotonic() + 30
        while burst.waiting()["py"] < 6:
            assert time.monotonic() < deadline, burst.waiting()
            time.sleep(0.05)


def test_while_others_have_just_come_nothing_is_cleaned_that_can_wait(pool, monkeypatch):
    cores = os.cpu_count()
    monkeypatch.setattr("statepool.sandbox.pool._YOUNG_SECONDS", 3600.0)
    with Pool(low=1, high=cores + 4) as busy, contextlib.ExitStack() as stack:
        busy.fill("py", cores + 3)
        for _ in range(cores):
            stack.enter_context(Sandbox(pool=busy))
        Sandbox(pool=busy).close()
        time.sleep(0.5)
        assert (busy.waiting()["py"], busy.busy()) == (2, cores + 1)
        Sandbox(pool=busy).close()  # one is left, as many as must be ready
        _until(lambda: busy.waiting()["py"] > 1)
        monkeypatch.setattr("statepool.sandbox.pool._YOUNG_SECONDS", 0.0)
        _until(lambda: (busy.waiting()["py"], busy.busy()) == (3, cores))


def _until(done):
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_who_gives_back_what_he_takes_needs_no_more_slots(pool):
    """Refilling for every start would make a slot that has to end as soon as the taken one comes back."""
    with Pool(low=1, high=6) as small:
        Sandbox(pool=small).close()
        small.settle()
        made = small.counters["destroyed"] + small.waiting()["py"]
        for _ in range(60):
            Sandbox(pool=small).close()
            small.settle()
        assert small.counters["destroyed"] + small.waiting()["py"] + small.busy() <= made + 1


def test_a_full_pool_says_so_and_switches_templates(pool):
    with Pool([Template("other", env={"KIND": "other"})], low=0, high=2, most=2) as small:
        one, two = Sandbox(pool=small), Sandbox(pool=small)
        with pytest.raises(Overloaded, match="2 slots are busy"):
            Sandbox(pool=small)
        one.close()
        two.close()
        small.settle()
        with Sandbox("other", pool=small) as switched:
            assert switched.run_code("import os\nos.environ['KIND']").text == "'other'"
        assert small.counters["switch"] == 1


def test_limits_of_its_own(pool):
    if pool.driver != "ns":
        pytest.skip("needs cgroups")
    with Sandbox(pool=pool, memory="48MiB") as sandbox:
        done = sandbox.run_code("b = bytearray(80 << 20)")
        assert done.error.name in ("KernelDied", "MemoryError") and (
            "out of memory" in done.error.value or not done.error.value
        )
    with pytest.raises(InvalidRequest, match="memory_bytes"):
        Sandbox(pool=pool, memory="1KiB")


def test_what_cannot_be_had_is_an_error_and_nothing_weaker():
    with pytest.raises(InvalidRequest, match="auto, ns, userns"):
        Pool(driver="docker")
    for driver in ("vm", "runsc", "userns" if os.geteuid() == 0 else "ns"):
        with pytest.raises(IsolationUnavailable):
            Pool(driver=driver)


def test_a_template_that_fails_or_starts_threads_is_refused(pool):
    for template, why in (
        (Template("missing", preload=("no_such_module",)), "no_such_module"),
        (
            Template("threads", warm="import threading, time\nthreading.Thread(target=time.sleep, args=(9,)).start()"),
            "2 threads",
        ),
    ):
        pool.add(template)
        with pytest.raises(SlotFailed, match=why):
            Sandbox(template.name, pool=pool)


def test_manifests(tmp_path, pool):
    path = tmp_path / "kind.toml"
    path.write_text(
        'preload = ["decimal"]\n[files]\n"data/x.txt" = "hello"\n[limits]\nmemory_bytes = "64MiB"\n[env]\nA = "b"\n'
    )
    template = Template.read(path)
    assert (template.name, template.limits.memory_bytes) == ("kind", 64 << 20)
    pool.add(template)
    with Sandbox("kind", pool=pool) as sandbox:
        code = "import sys, os\n'decimal' in sys.modules, os.environ['A'], open('data/x.txt').read()"
        assert sandbox.run_code(code).text == "(True, 'b', 'hello')"
    path.write_text("preloads = []\n")
    with pytest.raises(InvalidRequest, match="preloads"):
        Template.read(path)
    with pytest.raises(InvalidRequest, match="leads out"):
        Template("out", files={"../../etc/passwd": "x"})


def test_a_slot_that_dies_is_noticed_and_replaced(pool):
    sandbox = Sandbox(pool=pool)
    running = sandbox.commands.start("sleep 100")
    os.kill(sandbox.lease.slot.pid, signal.SIGKILL)
    assert running.wait(20).exit_code == -9
    with pytest.raises(SandboxGone):
        for _ in range(200):
            sandbox.run_code("1")
            time.sleep(0.01)
    sandbox.close()
    pool.settle()
    os.kill(pool._shelves["py"].zygote.pid, signal.SIGKILL)
    with Sandbox(pool=pool) as other:
        assert other.run_code("1 + 1").text == "2"


def test_a_template_with_pyarrow(pool):
    """Its allocator starts a thread unless told otherwise; pandas loads it."""
    pytest.importorskip("pyarrow")
    pool.add(Template("arrow", preload=("pyarrow",)))
    with Sandbox("arrow", pool=pool) as sandbox:
        assert sandbox.run_code("import pyarrow\npyarrow.array([1, 2]).to_pylist()").text == "[1, 2]"
    pool.end_waiting("arrow")


def test_a_kernel_that_waits_has_its_pages_already(pool):
    """The kernel's own count of page faults: a first cell, and no more than a fifth of what the fork took before it."""
    if pool.driver != "ns" or tuple(int(part) for part in os.uname().release.split(".")[:2]) < (5, 14):
        pytest.skip("needs cgroups to find the kernel, and MADV_POPULATE_WRITE")
    pool.fill("py", 1)
    with Sandbox(pool=pool) as sandbox:
        assert sandbox.context.pid > 1  # it is there
        (kernel,) = sandbox.lease.slot.cgroup.members() - sandbox.lease.slot.own

        def faults():
            return int(Path(f"/proc/{kernel}/stat").read_text().rpartition(")")[2].split()[7])

        time.sleep(0.2)
        before = faults()
        assert sandbox.run_code("1 + 1").text == "2"
        assert faults() - before < before / 5


SEAL = """
import hashlib, os
from statepool.native import _sandbox
data = [os.urandom(5000) for _ in range(4000)]
def sums():
    return hashlib.sha256(b"".join(data)).digest()
before = sums()
_sandbox.seal()
maps = open("/proc/self/maps").read()
assert sums() == before and maps.count("/memfd:template") > 10
rights = {line.split()[1] for line in maps.splitlines() if "/lib-dynload/" in line}
assert rights == {"r-xp"}, "constants and code are one mapping"
pid = os.fork()
if pid == 0:
    data[7] = b"mine"
    os._exit(sums() == before)
assert os.waitpid(pid, 0)[1] == 0
assert sums() == before
"""


def test_memory_that_is_sealed_changes_no_byte():
    if not USABLE:
        pytest.skip("no driver works here")
    subprocess.run([sys.executable, "-c", SEAL], check=True, timeout=60)


def test_pools_of_one_process_share_no_cgroup(pool):
    with Pool(low=0) as other, Sandbox(pool=pool) as one, Sandbox(pool=other) as two:
        assert one.lease.slot.name != two.lease.slot.name
        assert one.lease.slot.cgroup.paths.keys() == two.lease.slot.cgroup.paths.keys()
        assert not set(one.lease.slot.cgroup.paths.values()) & set(two.lease.slot.cgroup.paths.values())
        one.run_code("x = 1")
        two.close()
        other.close()
        assert one.run_code("x").text == "1"


def test_kernels_that_end_while_they_wait_cost_their_slots_only(pool, caplog):
    pool.settle()
    pool.fill("py", 3)
    for slot, _ in list(pool._shelves["py"].parked):
        assert slot.signal(slot.tenant[2].process(), signal.SIGKILL)
        deadline = time.monotonic() + 20
        while slot._last_exit[1] != -signal.SIGKILL:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    with Sandbox(pool=pool) as sandbox:
        assert sandbox.run_code("1 + 1").text == "2"
    assert "exit code -9" in caplog.text


MANAGER = """
import sys, random
from pathlib import Path
from statepool.sandbox import Pool, Sandbox
pool = Pool(folder=Path(sys.argv[1]), low=2)
print("step", flush=True)
while True:
    sandbox = Sandbox(pool=pool)
    print("step", flush=True)
    sandbox.run_code("import subprocess; p = subprocess.Popen(['setsid', 'sleep', '" + sys.argv[2] + "'])")
    print("step", flush=True)
    if random.random() < 0.5:
        sandbox.close()
        print("step", flush=True)
"""


KILLER = """
import ctypes, json, os, random, subprocess, sys, time
from pathlib import Path
from statepool.sandbox import Pool, cgroup
manager, folder, count, nap = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # whoever loses its parent becomes a child of this process
rng, pids, opened = random.Random(count), [], len(os.listdir("/proc/self/fd"))
for _ in range(count):
    process = subprocess.Popen([sys.executable, "-c", manager, folder, nap], stdout=subprocess.PIPE)
    pids.append(process.pid)
    for _ in range(rng.randrange(8)):  # by its own steps, so that a slow machine is struck in the same places
        assert process.stdout.readline() == b"step\\n"
    time.sleep(rng.random() * 0.1)
    process.kill()
    process.wait()
    process.stdout.close()
Pool(folder=folder).close()
names = tuple(f"{cgroup.PREFIX}{pid}-" for pid in pids)
left = [str(path) for root in cgroup.roots().values() for path in root.iterdir() if path.name.startswith(names)]
deadline, ended = time.monotonic() + 30, 0
try:
    while time.monotonic() < deadline:
        ended += os.waitpid(-1, os.WNOHANG)[0] > 0 or time.sleep(0.01) or 0
except ChildProcessError:
    deadline = 0
left += [] if deadline == 0 else [Path(f"/proc/self/task/{os.getpid()}/children").read_text()]
left += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(folder) in line]
left += [folder.name] * folder.exists()
print(json.dumps([left, ended, len(os.listdir("/proc/self/fd")) - opened]))
"""


def _kills(folder, count):
    """Kill a manager at random points, start the next one on its folder; all it left must be gone in the end.

    Whoever outlives his parent is handed to the process that kills, so none can hide; a namespace lives as long as
    its processes, mounts and descriptors.
    """
    nap = str(10_000 + os.getpid())
    command = [sys.executable, "-c", KILLER, MANAGER, str(folder), str(count), nap]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    left, ended, opened = json.loads(done.stdout)
    assert (left, opened) == ([], 0)
    assert ended >= count, "zygotes, slots and commands became children of the killer"
    asleep = subprocess.run(["pgrep", "-f", f"sleep {nap}$"], capture_output=True, text=True).stdout.split()
    assert asleep == []


def test_what_a_killed_manager_leaves_is_cleared(tmp_path):
    if not USABLE:
        pytest.skip("no driver works here")
    _kills(tmp_path / "state", 3)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_hundred_killed_managers_leave_nothing(tmp_path, record_property):
    _kills(tmp_path / "state", 100)
    record_property("kills", 100)


def test_two_managers_on_one_folder_and_a_damaged_journal(tmp_path):
    folder = tmp_path / "state"
    first = ledger.Ledger(folder)
    with pytest.raises(SandboxError, match="another manager"):
        ledger.Ledger(folder)
    first.write(cgroup="x")
    first.write(pid=1 << 22, started=5)
    first._file.close()
    first._lock_file.close()
    path = folder / "ledger"
    text = path.read_bytes()
    assert ledger.entries(path) == [{"cgroup": "x"}, {"pid": 1 << 22, "started": 5}]
    for cut in range(len(text.splitlines()[0]) + 1, len(text)):
        path.write_bytes(text[:cut])
        assert ledger.entries(path)[:1] == [{"cgroup": "x"}]
    for place in range(len(text.splitlines()[0])):
        path.write_bytes(text[:place] + bytes([text[place] ^ 4]) + text[place + 1 :])
        with pytest.raises(Corruption, match="line 1"):
            ledger.entries(path)


def test_nothing_grows_with_use(pool):
    """Descriptors, threads and mounts after fifty more sandboxes are what they were after ten."""

    def use(count):
        for _ in range(count):
            with Sandbox(pool=pool) as sandbox:
                sandbox.commands.run("true")
                sandbox.files.write("f", "x")
                sandbox.snapshot().close()
            pool.settle()

    def held():
        pool.fill("py", pool.high)  # and none is being made meanwhile
        slots = [slot for shelf in pool._shelves.values() for slot, _ in shelf.parked]
        mounts = sum(len(Path(f"/proc/{slot.pid}/mounts").read_text().splitlines()) for slot in slots) / len(slots)
        inside = max(len([*Path(f"/proc/{slot.pid}/fd").iterdir()]) for slot in slots)
        return len([*Path("/proc/self/fd").iterdir()]) - 4 * len(slots), mounts, inside

    use(10)
    before = held()
    use(30)
    after, end = held(), time.monotonic() + 10
    while after[2] > before[2] + 4 and time.monotonic() < end:  # a slot that is being made ready has some open
        time.sleep(0.1)
        after = held()
    # One of each per use would be 30 here, and seven or more in the fullest slot; which slot that is may differ.
    assert after[0] <= before[0] + 2 and after[1] == pytest.approx(before[1], abs=6) and after[2] <= before[2] + 4
