# ruff: noqa: E501  # a channel is easier to read in one line
"""What a tenant may leave for the next one, by channel: how it is left, and how the next tenant would see it.

``LEAVE`` and ``LOOK`` are cells. ``LOOK`` gives the names of the channels in which something was found, a random
number and the user id. Run after ``LEAVE`` in the same kernel it must give every name but those of ``REFUSED``, which
nobody can leave: else the look is blind, and finding nothing later would say nothing. The variable ``LOCKED`` names a
file of the base for locks: living tenants do see each other's. ``NICE`` is the manager's own priority.
"""

MARK = "c4n4ry"
HEAD = f"""
import atexit, builtins, ctypes, decimal, fcntl, gc, json, locale, os, random, resource, signal, socket, subprocess, sys, threading, time, warnings
M, HOME = {MARK!r}, os.environ['HOME']
libc = ctypes.CDLL(None, use_errno=True)
def put(path, text=M):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'w') as file: file.write(text)
def text(path):
    with open(path) as file: return file.read()
def fails(act):
    try: act()
    except OSError: return True
def counter(name, field):
    heads, values = [line.split() for line in open('/proc/net/snmp') if line.startswith(name + ':')]
    return int(values[heads.index(field)])
"""

_FOLDERS = {
    "home": "HOME",
    "/tmp": "'/tmp'",
    "/var/tmp": "'/var/tmp'",
    "/dev/shm": "'/dev/shm'",
    "/run/shm": "'/run/shm'",
}
_HOME_FILES = (
    ".bash_history",
    ".bashrc",
    ".profile",
    ".config/pip/pip.conf",
    ".netrc",
    ".ssh/authorized_keys",
    f".local/lib/python3.11/site-packages/{MARK}.pth",
    ".local/lib/python3.11/site-packages/usercustomize.py",
    f"__pycache__/{MARK}.cpython-311.pyc",
    f".config/systemd/user/{MARK}.service",
)

CHANNELS = {
    **{
        f"file in {name}": (f"put({path} + '/' + M)", f"os.path.exists({path} + '/' + M)")
        for name, path in _FOLDERS.items()
    },
    **{f"~/{name}": (f"put(HOME + '/{name}')", f"os.path.exists(HOME + '/{name}')") for name in _HOME_FILES},
    "extended attribute": ("os.setxattr(HOME, 'user.' + M, b'x')", "'user.' + M in os.listxattr(HOME)"),
    "mode of a folder": ("os.chmod(HOME, 0o777)", "os.stat(HOME).st_mode & 0o002"),
    "time of a folder": ("os.utime(HOME, (1, 1))", "os.stat(HOME).st_mtime == 1"),
    "symbolic link": ("os.symlink(M, '/tmp/link')", "os.path.islink('/tmp/link')"),
    "named pipe": ("os.mkfifo('/tmp/pipe')", "os.path.exists('/tmp/pipe')"),
    "lock on a file of the base": (
        "lock = open(os.environ['LOCKED']); fcntl.flock(lock, fcntl.LOCK_EX)\nif os.fork() == 0: time.sleep(1000)",
        "fails(lambda: fcntl.flock(open(os.environ['LOCKED']), fcntl.LOCK_EX | fcntl.LOCK_NB))",
    ),
    "System V memory": ("libc.shmget(0x5150, 4096, 0o1666)", "libc.shmget(0x5150, 0, 0) >= 0"),
    "System V semaphore": ("libc.semget(0x5150, 1, 0o1666)", "libc.semget(0x5150, 0, 0) >= 0"),
    "System V queue": ("libc.msgget(0x5150, 0o1666)", "libc.msgget(0x5150, 0) >= 0"),
    "POSIX queue": (
        "libc.mq_open(b'/' + M.encode(), 0o102, 0o600, None)",
        "libc.mq_open(b'/' + M.encode(), 2, 0, None) >= 0",
    ),
    "POSIX semaphore": ("put('/dev/shm/sem.' + M)", "os.path.exists('/dev/shm/sem.' + M)"),
    "abstract socket": (
        "unix = socket.socket(socket.AF_UNIX); unix.bind('\\0' + M)",
        "fails(lambda: socket.socket(socket.AF_UNIX).bind('\\0' + M))",
    ),
    "socket in a folder": (
        "named = socket.socket(socket.AF_UNIX); named.bind('/tmp/socket')",
        "os.path.exists('/tmp/socket')",
    ),
    "listening port": (
        "server = socket.create_server(('127.0.0.1', 45454))",
        "fails(lambda: socket.create_server(('127.0.0.1', 45454), reuse_port=False).close())",
    ),
    "port in TIME_WAIT": (
        "client = socket.create_connection(('127.0.0.1', 45454)); peer = server.accept()[0]; peer.close(); client.close()",
        "int(text('/proc/net/sockstat').split('TCP:')[1].split()[5]) or fails(lambda: socket.create_server(('127.0.0.1', 45454)).close())",
    ),
    "counters of TCP": ("pass", "counter('Tcp', 'ActiveOpens')"),
    "counters of UDP": (
        "udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.sendto(b'x', ('127.0.0.1', 9)); udp.close()",
        "counter('Udp', 'OutDatagrams')",
    ),
    "bytes of the loopback": ("pass", "int(text('/proc/net/dev').split('lo:')[1].split()[0])"),
    "variable": ("os.environ[M] = M", "M in os.environ"),
    "working directory": ("os.chdir('/tmp')", "os.getcwd() != HOME"),
    "file mode mask": ("os.umask(0)", "[old := os.umask(0o22), os.umask(old)][0] != 0o22"),
    "limit of descriptors": (
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))",
        "resource.getrlimit(resource.RLIMIT_NOFILE)[0] <= 100",
    ),
    "limit of the stack": (
        "resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, 1 << 20))",
        "resource.getrlimit(resource.RLIMIT_STACK)[0] == 1 << 20",
    ),
    "signal handler": (
        "signal.signal(signal.SIGUSR1, signal.SIG_IGN)",
        "signal.getsignal(signal.SIGUSR1) != signal.SIG_DFL",
    ),
    "blocked signal": (
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])",
        "signal.pthread_sigmask(signal.SIG_BLOCK, [])",
    ),
    "alarm": ("signal.alarm(1000)", "signal.alarm(0)"),
    "interval timer": ("signal.setitimer(signal.ITIMER_VIRTUAL, 1000)", "signal.getitimer(signal.ITIMER_VIRTUAL)[0]"),
    "timer slack": ("libc.prctl(29, 123456, 0, 0, 0)", "libc.prctl(30, 0, 0, 0, 0) == 123456"),
    "name of the process": ("libc.prctl(15, M.encode(), 0, 0, 0)", "M in text('/proc/self/comm')"),
    "priority": ("os.nice(5)", "os.nice(0) != int(os.environ['NICE'])"),
    "cores": ("os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})", "len(os.sched_getaffinity(0)) == 1"),
    "locale": ("locale.setlocale(locale.LC_ALL, 'C')", "locale.setlocale(locale.LC_CTYPE) == 'C'"),
    "time zone": ("os.environ['TZ'] = 'XYZ-5'; time.tzset()", "time.tzname[0] == 'XYZ'"),
    "random state": (
        "random.seed(5)",
        "(random.random() == random.Random(5).random()) if 'left' not in globals() else True",
    ),
    "numpy's random state": (
        "sys.modules['numpy'].random.seed(5)",
        "sys.modules['numpy'].random.random() == sys.modules['numpy'].random.RandomState(5).random()",
    ),
    "numpy's settings": (
        "sys.modules['numpy'].seterr(all='raise')",
        "sys.modules['numpy'].geterr()['over'] == 'raise'",
    ),
    "name in the kernel": ("left = M", "'left' in globals()"),
    "builtin": ("builtins.canary = M", "hasattr(builtins, 'canary')"),
    "module": ("sys.modules[M] = os", "M in sys.modules"),
    "path of modules": ("sys.path.append(M)", "M in sys.path"),
    "patched module": ("json.dumps = lambda *_: M", "json.dumps(1) == M"),
    "standard output": ("sys.stdout.canary = M", "hasattr(sys.stdout, 'canary')"),
    "hook for errors": ("sys.excepthook = lambda *_: None", "sys.excepthook is not sys.__excepthook__"),
    "depth of recursion": ("sys.setrecursionlimit(777)", "sys.getrecursionlimit() == 777"),
    "filter of warnings": ("warnings.filterwarnings('ignore', M)", "any(M in str(item) for item in warnings.filters)"),
    "collector": ("gc.set_threshold(12345)", "gc.get_threshold()[0] == 12345"),
    "decimal context": ("decimal.getcontext().prec = 7", "decimal.getcontext().prec == 7"),
    "thread": (
        "threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()",
        "threading.active_count() > 1",
    ),
    "descriptor": ("os.dup2(os.open('/', os.O_PATH), 77)", "os.path.lexists('/proc/self/fd/77')"),
    "daemon": (
        "subprocess.run(['/bin/sh', '-c', 'for i in 1 2 3 4 5 6; do (setsid sleep 1000 &) ; done'])",
        "[p for p in os.listdir('/proc') if p.isdigit() and int(p) != os.getpid()]",
    ),
    "count of processes": (
        "pass",
        "int(text('/proc/loadavg').split()[-1]) > 12 if 'loadavg' in os.listdir('/proc') else os.fork()",
    ),
    "mark in the mounts": ("pass", "M in text('/proc/self/mounts')"),
    "file of /etc": ("put('/etc/' + M)", "os.path.exists('/etc/' + M)"),
    "ld.so.preload": ("put('/etc/ld.so.preload', '')", "os.path.exists('/etc/ld.so.preload')"),
    "time of a file of the base": ("os.utime('/usr/bin/env', (1, 1))", "os.stat('/usr/bin/env').st_mtime == 1"),
    "host name": ("socket.sethostname(M)", "socket.gethostname() != 'sandbox'"),
    "key": (
        "assert libc.syscall(248, b'user', M.encode(), b'x', 1, -3) >= 0",
        "libc.syscall(249, b'user', M.encode(), None, -3) >= 0",
    ),
    "setting of the network": (
        "put('/proc/sys/net/ipv4/ip_unprivileged_port_start', '0')",
        "text('/proc/sys/net/ipv4/ip_unprivileged_port_start').strip() == '0'",
    ),
}
"""By name: what leaves it (statements), and what finds it (an expression that is true then)."""

REFUSED = {
    "mark in the mounts",
    "file of /etc",
    "ld.so.preload",
    "time of a file of the base",
    "host name",
    "key",
    "setting of the network",
}
"""Channels a tenant cannot write to as root's ``ns`` driver runs it; with ``userns`` /etc is a copy of its own."""

LEAVE = (
    HEAD
    + "refused = set()\nfor name, code in "
    + repr({name: leave for name, (leave, _) in CHANNELS.items()})
    + ".items():\n    try: exec(code, globals())\n    except (OSError, AssertionError): refused.add(name)\nsorted(refused)"
)
LEAVE_QUIETLY = HEAD + CHANNELS["counters of UDP"][0] + "\n" + CHANNELS["daemon"][0]
"""No socket stays, so that nothing but the counters asks for a new network."""
LOOK = (
    HEAD
    + "found = []\nfor name, code in "
    + repr({name: look for name, (_, look) in CHANNELS.items()})
    + ".items():\n    if eval(code, globals()): found.append(name)\n(found, random.random(), os.getuid())"
)
