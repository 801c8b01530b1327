"""What a store asks of the kernel, and in which order, seen from outside by strace."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import statepool.store

from .net_processes import unix


def traced(trace: Path, calls: str, *command: object) -> list[str]:
    """The command that has strace write the calls of a command to `trace`."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    if "ptrace" in subprocess.run([strace, "true"], capture_output=True, text=True).stderr.lower():
        pytest.skip("this machine does not let strace trace")
    return [strace, "-f", "-y", "-s", "256", "-e", f"trace={calls}", "-o", str(trace), *map(str, command)]


def end(strace: subprocess.Popen[str]) -> None:
    """Have what it traces end."""
    for child in Path(f"/proc/{strace.pid}/task/{strace.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGTERM)
    strace.wait(20)
    assert strace.stdout is not None
    strace.stdout.close()


def test_an_acknowledgement_leaves_after_the_write(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    script = (
        "import os, statepool.store as s\n"
        f"d = s.open({str(tmp_path / 'store')!r}, shared=False, capacity='8MiB', segment_size='1MiB').dict('d')\n"
        "for i in range(50):\n"
        "    d[b'%d' % i] = b'value-%d.' % i\n"
        "    os.write(1, b'acknowledged %d\\n' % i)\n"
    )
    done = subprocess.run(traced(trace, "pwrite64,write", sys.executable, "-c", script), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = -1
    acknowledged = 0
    for line in trace.read_text().splitlines():
        if (frame := re.search(r"pwrite64\(\d+<[^>]*/log/[^>]*>.*value-(\d+)\..*\) += 4096$", line)) is not None:
            written = int(frame[1])
        if (said := re.search(r"write\(1<.*acknowledged (\d+)", line)) is not None:
            acknowledged += 1
            assert written == int(said[1]), f"acknowledged before its frame was written: {line}"
    assert acknowledged == 50


def whole_lines(trace: Path) -> list[str]:
    """Calls in the order in which they ended; what strace printed of one in two parts is one line."""
    begun: dict[str, str] = {}
    lines = []
    for line in trace.read_text().splitlines():
        process, rest = line.split(maxsplit=1)
        if rest.endswith(" <unfinished ...>"):
            begun[process] = rest.removesuffix(" <unfinished ...>")
            continue
        if (resumed := re.match(r"<\.\.\. \w+ resumed>", rest)) is not None:
            rest = begun.pop(process) + rest[resumed.end() :]
        lines.append(rest)
    return lines


def test_a_daemon_answers_after_the_write(tmp_path: Path) -> None:
    trace, where = tmp_path / "trace", unix(tmp_path, "socket")
    serve = ["-m", "statepool.cli", "store", "serve", tmp_path / "s", "--listen", where, "--capacity", "16MiB"]
    calls = "pwrite64,recvfrom,sendto,read,write"
    daemon = subprocess.Popen(traced(trace, calls, sys.executable, *serve), stdout=subprocess.PIPE, text=True)
    try:
        assert daemon.stdout is not None and daemon.stdout.readline().startswith("serving")
        with statepool.store.open(where) as store:
            entries = store.dict("d")
            for i in range(30):
                entries[b"%d" % i] = b"value-%d." % i
    finally:
        end(daemon)
    asked = written = -1
    answered = []
    for line in whole_lines(trace):
        if (frame := re.search(r"^pwrite64\(\d+<[^>]*/log/[^>]*>.*value-(\d+)\..*= 4096$", line)) is not None:
            written = int(frame[1])
        elif (call := re.search(r"^(?:recvfrom|read)\(\d+<(?:socket|UNIX).*value-(\d+)\.", line)) is not None:
            asked = int(call[1])
        elif re.search(r"^(?:sendto|write)\(\d+<(?:socket|UNIX)", line) and asked >= 0:
            answered.append((asked, written))
            asked = -1
    assert answered == [(i, i) for i in range(30)], "it answered before the frame was written"


def test_a_name_is_durable_before_what_lies_under_it_counts(tmp_path: Path) -> None:
    """A frame in a new segment, or a superblock that names a checkpoint, is worth nothing without that name."""
    trace, folder = tmp_path / "trace", tmp_path / "s"
    script = (
        "import statepool.store as s\n"
        f"with s.open({str(folder)!r}, shared=False, capacity='8MiB', segment_size='64KiB') as store:\n"
        "    for i in range(60):\n"
        "        store.dict('d')[b'%d' % i] = b'v' * 5000\n"
        "        if i % 20 == 19:\n"
        "            store.checkpoint()\n"
    )
    calls = "openat,rename,pwrite64,fsync,fdatasync"
    done = subprocess.run(traced(trace, calls, sys.executable, "-c", script), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    uncertain: set[Path] = set()  # names that the folder on the disk may lack
    counted = {"log": 0, "ckpt": 0}
    for line in whole_lines(trace):
        if (made := re.match(rf'openat\(.*"({folder}/[^"]*)".*O_CREAT.*= \d+', line)) is not None:
            uncertain.add(Path(made[1]))
        elif (moved := re.match(rf'rename\("[^"]*", "({folder}/[^"]*)"\) += 0', line)) is not None:
            uncertain.add(Path(moved[1]))
        elif (synced := re.match(rf"fsync\(\d+<({folder}[^>]*)>\) += 0", line)) is not None:
            uncertain = {name for name in uncertain if name.parent != Path(synced[1])}
        elif (wrote := re.match(rf"pwrite64\(\d+<({folder}/[^>]*)>.*, (\d+)\) += \d+", line)) is not None:
            name, at = Path(wrote[1]), int(wrote[2])
            if name.parent.name == "log" and len(name.name) == 16 and at >= 4096:
                assert name not in uncertain, f"{name} is written to before its name is durable"
                counted["log"] += 1
            elif name.name == "meta" and '"SPSM' in line:
                numbered = {n for n in uncertain if len(n.name) == 16}
                assert not numbered and name not in uncertain, f"{numbered} may not be there when meta names them"
                counted["ckpt"] += 1
    assert counted["log"] >= 60 and counted["ckpt"] >= 4


def test_a_mirror_says_that_it_has_what_it_has_synced(tmp_path: Path) -> None:
    """Its next pull names the last frame that is durable there."""
    trace, url = tmp_path / "trace", unix(tmp_path, "socket")
    serve = [sys.executable, "-m", "statepool.cli", "store", "serve", tmp_path / "s", "--listen", url]
    primary = subprocess.Popen([*map(str, serve), "--capacity", "16MiB"], stdout=subprocess.PIPE, text=True)
    follow = ["-m", "statepool.cli", "store", "mirror", tmp_path / "m", "--of", url]
    calls = "pwrite64,fdatasync,sendto,write"
    mirror = subprocess.Popen(traced(trace, calls, sys.executable, *follow), stdout=subprocess.PIPE, text=True)
    try:
        for child in (primary, mirror):
            assert child.stdout is not None and child.stdout.readline().startswith(("serving", "mirroring"))
        with statepool.store.open(url) as store:
            entries, until = store.dict("d"), time.monotonic() + 20
            confirmed = 0
            while confirmed < 20 and time.monotonic() < until:
                try:
                    entries.put(b"k", b"value", durability="mirror")
                    confirmed += 1
                except statepool.store.StoreError:
                    time.sleep(0.05)
            assert confirmed == 20
    finally:
        os.kill(primary.pid, signal.SIGKILL)
        end(mirror)
        primary.wait(20)
        assert primary.stdout is not None
        primary.stdout.close()
    unsynced, said = set(), 0
    for line in whole_lines(trace):
        if (wrote := re.match(r"pwrite64\(\d+<([^>]*/log/[^>]*)>.*= \d+", line)) is not None:
            unsynced.add(wrote[1])
        elif (synced := re.match(r"fdatasync\(\d+<([^>]*)>\) += 0", line)) is not None:
            unsynced.discard(synced[1])
        elif re.match(r"(?:sendto|write)\(\d+<(?:socket|UNIX).*pull", line) is not None:
            assert not unsynced, f"it pulled before {unsynced} were synced"
            said += 1
    assert said >= 20
