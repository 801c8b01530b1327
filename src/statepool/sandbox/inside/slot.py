"""PID 1 of a slot: has its stem fork kernels, starts commands, makes layers of files, cleans up for the next tenant.

It speaks to the manager only. A tenant shares its PID namespace and can do nothing to it: it runs as another user, is
not dumpable, and PID 1 takes no signal from inside that it has no handler for.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import os
import resource
import select
import signal
import socket
import struct
import termios
import time
import traceback
from typing import Any

from statepool.native import _sandbox  # type: ignore[attr-defined]
from statepool.sandbox import seccomp
from statepool.sandbox.channel import Channel, Closed
from statepool.sandbox.inside.root import Base, Root
from statepool.sandbox.inside.stem import Stem

__all__ = ["main"]

_DUMPABLE = 4
_NEW_UTS, _NEW_IPC, _NEW_NET = 0x04000000, 0x08000000, 0x40000000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_TIOCSPTLCK, _TIOCGPTN = 0x40045431, 0x80045430  # termios has them from Python 3.13 on
_RESET_SECONDS = 5.0
_HIGH = 200
_SPACES = ("ipc", "uts", "net", "cgroup", "pid", "mnt")
"""Namespaces of a slot, in the order in which its stem enters them: the mounts last, since they hide the rest."""


def main(control: Channel, line: Channel, message: dict[str, Any], spec: dict[str, Any]) -> None:
    """Become PID 1; returns never."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    high = fcntl.fcntl(control.fileno(), fcntl.F_DUPFD_CLOEXEC, _HIGH)
    high_line = fcntl.fcntl(line.fileno(), fcntl.F_DUPFD_CLOEXEC, _HIGH)
    null = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    control.socket.detach()
    line.socket.detach()
    os.closerange(3, _HIGH)
    control, line = Channel(socket.socket(fileno=high)), Channel(socket.socket(fileno=high_line))
    os.setsid()
    try:
        slot = _Slot(control, line, message, spec)
        gc.freeze()
        control.send({"op": "ready", "stem": slot.stem.host_pid})
        slot.serve()
    except BaseException as error:  # noqa: BLE001  # whatever it is, the manager must hear of it
        where = traceback.extract_tb(error.__traceback__)[-1]
        with contextlib.suppress(Closed):
            control.send(
                {"op": "failed", "error": f"{type(error).__name__}: {error} ({where.name}, line {where.lineno})"}
            )
    os._exit(1)


class _Slot:
    def __init__(self, control: Channel, line: Channel, message: dict[str, Any], spec: dict[str, Any]) -> None:
        self._control = control
        self._userns: bool = message["userns"]
        self._limits: dict[str, int] = spec["limits"]
        self._program = seccomp.program(spec["debug"])
        self._roots: dict[int, Root] = {}
        self._tracked: set[int] = set()
        self._order: dict[str, Any] = {}
        self._command_confinement = None
        self._uffd_device = _device_of_pages()
        self._base = Base(message)
        socket.sethostname("sandbox")
        _loopback_up()
        self._unused = _net_counts()
        self.stem = Stem(line, self._ended)
        self.stem.join(("user", *_SPACES) if self._userns else _SPACES)
        _sandbox.prctl(_DUMPABLE, 0)
        self._spare = self._base.fresh(self._limits["files_bytes"], self._limits["inodes"])
        self._wake, wake_in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_in, warn_on_full_buffer=False)

    def serve(self) -> None:
        """Answer the manager until it goes away; then everything here ends."""
        poll = select.poll()
        poll.register(self._control.fileno(), select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        poll.register(self.stem, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if self.stem.fileno() in ready:
                self.stem.hear()
            if self._wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake, 4096)
                self._reap()
            if self._control.fileno() in ready:
                try:
                    message, fds = self._control.receive(rights=True)
                except Closed:
                    os._exit(0)
                self._answer(message, fds)

    def _answer(self, message: dict[str, Any], fds: list[int]) -> None:
        reply: dict[str, Any] = {"re": message.get("id")}
        send: list[int] = []
        try:
            found = getattr(self, "_op_" + message["op"])(message, fds)
            send = found.pop("fds", [])
            reply |= found
        except OSError as error:
            reply |= {
                "error": f"{error.filename or message['op']}: {error.strerror or error}",
                "errno": error.errno or 0,
            }
        except (LookupError, TypeError, ValueError) as error:  # an unknown root, a number out of range
            reply |= {"error": f"{message['op']}: {type(error).__name__}: {error}", "errno": errno.EINVAL}
        for fd in fds:
            os.close(fd)
        self._control.send(reply, send)
        for fd in send:
            if fd not in {root.fd for root in self._roots.values()}:
                os.close(fd)

    def _op_start(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """A new tenant: identity, limits, files; and its first kernel, which waits for it on the descriptors that
        came along.
        """
        uid = message["uid"]
        limits = message["limits"]
        rlimits = _rlimits(limits, message["memory_rlimit"])
        groups = not self._userns
        self._order = {"uid": uid, "groups": groups, "rlimits": rlimits}
        self._command_confinement = _sandbox.Confinement(uid, uid, self._program, rlimits, 0, groups)
        if (limits["files_bytes"], limits["inodes"]) != (self._limits["files_bytes"], self._limits["inodes"]):
            small = self._spare
            self._spare = self._base.fresh(limits["files_bytes"], limits["inodes"])
            self._base.drop(small, [self._spare])
        self._limits = limits
        self._base.own(self._spare, uid)
        self._roots = {0: self._spare}
        return self._op_kernel(message | {"root": 0}, fds)

    def _op_kernel(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        order, ends = self._order, [*fds, self._roots[message["root"]].fd]
        if "memory" in message:
            order, ends = order | {"memory": message["memory"]}, [*ends, self._uffd_device]
        pid = self.stem.grow(order, ends)
        self._tracked.add(pid)
        return {"pid": pid}

    def _op_spawn(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """Start a command; with ``terminal`` it gets a new one, and the manager its other end."""
        root = self._roots[message["root"]]
        send: list[int] = []
        if message["terminal"]:
            master, slave = _terminal(root, message["rows"], message["cols"])
            if not self._userns:
                os.fchown(slave, message["uid"], message["uid"])
            fds += [slave, slave, slave]
            send = [master]
        env = [f"{name}={value}" for name, value in message["env"].items()]
        try:
            pid = _sandbox.spawn(
                self._command_confinement, root.fd, message["argv"], env, message["cwd"], fds[-3:], message["terminal"]
            )
        except OSError:
            for fd in send:
                os.close(fd)
            raise
        finally:
            if message["terminal"]:
                del fds[-3:]
                os.close(slave)
        self._tracked.add(pid)
        return {"pid": pid, "fds": send}

    def _op_signal(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        pid = message["pid"]
        if pid <= 1:
            return {"sent": False}
        try:
            (os.killpg if message["group"] else os.kill)(pid, message["number"])
        except ProcessLookupError:
            return {"sent": False}
        return {"sent": True}

    def _op_root(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        return {"fds": [self._roots[message["root"]].fd]}

    def _op_layer(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """A root above another one. Whoever still writes below would break it, so nobody may but the kernels named."""
        below = self._roots[message["below"]]
        allowed = {1, self.stem.pid, *message["allowed"]}
        if busy := [pid for pid in _pids() if pid not in allowed and _device(pid) == below.device]:
            return {"busy": [[pid, _command(pid)] for pid in busy]}
        made = self._base.above(below, self._limits["files_bytes"], self._limits["inodes"])
        self._roots[message["root"]] = made
        return {"fds": [made.fd]}

    def _op_touched(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """Whether anything lies in a root's own layer, or anybody but the processes named is in it."""
        root, allowed = self._roots[message["root"]], {1, *message["allowed"]}
        busy = any(pid not in allowed and _device(pid) == root.device for pid in _pids())
        return {"touched": busy or bool(os.listdir(root.upper))}

    def _op_layers(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """Several roots above one that nobody writes to any more."""
        below = self._roots[message["below"]]
        for number in message["roots"]:
            self._roots[number] = self._base.above(below, self._limits["files_bytes"], self._limits["inodes"])
        return {"fds": [self._roots[number].fd for number in message["roots"]]}

    def _op_drop(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """Take a root away, and end who is still in it; its layer stays while others lie on it."""
        root = self._roots.pop(message["root"])
        spared = {1, self.stem.pid, *message["spared"]}
        for pid in _pids():
            if pid not in spared and _device(pid) == root.device:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._base.drop(root, self._roots.values())
        return {}

    def _op_listen(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """A listening socket on the sandbox's own loopback, for the manager to accept on."""
        server = socket.create_server(("127.0.0.1", message["port"]), backlog=64)
        return {"port": server.getsockname()[1], "fds": [server.detach()]}

    def _op_connect(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """A connection to a port of the sandbox."""
        client = socket.create_connection(("127.0.0.1", message["port"]), timeout=message["timeout"])
        client.settimeout(None)
        return {"fds": [client.detach()]}

    def _op_processes(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        return {"processes": [[pid, _command(pid)] for pid in _pids() if pid not in (1, self.stem.pid)]}

    def _op_reset(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """Nothing of the last tenant stays: processes, System V and POSIX objects, names, sockets, files."""
        self._tracked.clear()
        if not self._kill_all():
            return {"problem": "processes that do not die"}
        self._command_confinement = None
        flags = _NEW_IPC | _NEW_UTS
        if message["network"] or _sockets_left() or _net_counts() != self._unused:
            flags |= _NEW_NET
        _sandbox.unshare(flags)
        if flags & _NEW_NET:
            _loopback_up()
        self.stem.join(("ipc", "uts", "net") if flags & _NEW_NET else ("ipc", "uts"))
        socket.sethostname("sandbox")
        fresh = self._base.fresh(self._limits["files_bytes"], self._limits["inodes"])
        for root in [*self._roots.values()] or [self._spare]:
            self._base.drop(root, [fresh])
        self._roots = {}
        self._spare = fresh
        with contextlib.suppress(FileNotFoundError), open("/proc/sys/kernel/ns_last_pid", "w") as file:
            file.write(str(self.stem.pid))  # ids would tell how many processes others had
        return {}

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._ended(pid, os.waitstatus_to_exitcode(status))

    def _ended(self, pid: int, code: int) -> None:
        if pid in self._tracked:
            self._tracked.discard(pid)
            self._control.send({"op": "exit", "pid": pid, "code": code})

    def _kill_all(self) -> bool:
        """End what the tenant left running; answers whether all is gone. A fork bomb needs several rounds."""
        deadline = time.monotonic() + _RESET_SECONDS
        while self.stem.kill_others():
            self._reap()
            if time.monotonic() > deadline:
                return False
            time.sleep(0.0002)
        return True


def _rlimits(limits: dict[str, int], memory: bool) -> list[tuple[int, int]]:
    wanted = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: limits["open_files"],
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NPROC: limits["processes"],
        resource.RLIMIT_MEMLOCK: 1 << 16,
        resource.RLIMIT_MSGQUEUE: 1 << 20,
        resource.RLIMIT_RTPRIO: 0,
    }
    if memory:
        wanted[resource.RLIMIT_DATA] = limits["memory_bytes"]
    found = []
    for name, value in wanted.items():
        hard = resource.getrlimit(name)[1]
        found.append((name, value if hard == resource.RLIM_INFINITY else min(value, hard)))
    return found


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP))


def _sockets_left() -> bool:
    """Whether the network namespace remembers a socket, such as a port in TIME_WAIT.

    Counters, since the lists of TCP walk a table of the whole machine: 5 ms.
    """
    for name in ("sockstat", "sockstat6"):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/net/{name}", "rb") as file:
            for line in file:
                fields = line.split()
                counts = dict(zip(fields[1::2], fields[2::2], strict=False))
                if line.startswith(b"sockets"):
                    continue  # of the machine
                if any(int(counts.get(key, 0)) for key in (b"inuse", b"tw")):
                    return True
    return False


def _net_counts() -> list[bytes]:
    """What the network namespace has counted, packets that led nowhere included."""
    found = []
    for name in ("dev", "snmp", "snmp6"):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/net/{name}", "rb") as file:
            found.append(file.read())
    return found


def _terminal(root: Root, rows: int, cols: int) -> tuple[int, int]:
    """A new pseudo terminal of this root's own instance: the manager's end, the tenant's end."""
    master = os.open(f"{root.path}/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
    number = struct.unpack("i", fcntl.ioctl(master, _TIOCGPTN, struct.pack("i", 0)))[0]
    slave = os.open(f"{root.path}/dev/pts/{number}", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))
    return master, slave


def _device_of_pages() -> int:
    """/dev/userfaultfd, opened while the host's /dev is there; -1 where there is none."""
    try:
        low = os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return -1
    high = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    os.close(low)
    return high


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _device(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}/root").st_dev
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESRCH):
            return None
        raise


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read(4096).replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""
