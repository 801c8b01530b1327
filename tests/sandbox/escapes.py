# ruff: noqa: E501  # a way out is easier to read in one line
"""Ways out that a tenant may try. Each is code whose last expression is the list of what worked: it must be empty."""

HEAD = """
import ctypes, errno, os, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def opened(path, flags=os.O_RDWR):
    try:
        os.close(os.open(path, flags))
        return [path]
    except OSError:
        return []
def called(name, number, *args):
    ctypes.set_errno(0)
    if libc.syscall(number, *args) >= 0:
        return [name]
    return [] if ctypes.get_errno() in (errno.EPERM, errno.ENOSYS, errno.EACCES) else [f'{name}: errno {ctypes.get_errno()}']
"""

ESCAPES = {
    "host controls": "sum([opened(p, os.O_WRONLY) for p in ('/proc/sysrq-trigger', '/proc/sys/kernel/core_pattern', '/proc/sys/kernel/modprobe', "
    "'/proc/sys/vm/drop_caches', '/sys/kernel/uevent_helper', '/sys/fs/cgroup/memory/release_agent', '/proc/sys/kernel/hostname') if p != '/proc/sysrq-trigger'], [])"
    " + [p for p in ['/proc/sysrq-trigger'] if os.path.exists(p) and not os.stat(p).st_rdev]",
    "pid 1": "sum([opened(f'/proc/1/{n}', os.O_RDONLY) for n in ('root', 'cwd', 'mem', 'environ', 'maps', 'exe', 'fd', 'ns/mnt')], [])",
    "signals to pid 1": "for number in (9, 15, 19, 11):\n    try:\n        os.kill(1, number)\n    except OSError: pass\n[]",
    "interpreter": "opened(sys.executable) + opened('/proc/self/exe') + opened('/usr/bin/env')",
    "kernel memory": "sum([opened(p, os.O_RDONLY) for p in ('/dev/mem', '/dev/kmsg', '/dev/sda', '/dev/vda', '/dev/kvm', '/dev/fuse', '/dev/loop0', '/dev/net/tun')], [])"
    " + [p for p in ('kcore', 'keys', 'kallsyms', 'kmsg', 'slabinfo') if os.access('/proc/' + p, os.R_OK) and open('/proc/' + p, 'rb').read(10)]",
    "descriptors": "[os.readlink(f'/proc/self/fd/{f}') for f in os.listdir('/proc/self/fd') if int(f) > 3 and os.path.exists(f'/proc/self/fd/{f}')]",
    "families": "found = []\nfor family in (16, 17, 38, 40, 44, 9, 15, 30):\n    try:\n        socket.socket(family, socket.SOCK_DGRAM).close()\n"
    "        found.append(family)\n    except OSError: pass\nfor family in (40, 16):\n    try:\n        socket.socket(family, socket.SOCK_STREAM).close()\n"
    "        found.append(family)\n    except OSError: pass\nfound",
    "namespaces": "sum([called(f'unshare {f:#x}', 272, f) + called(f'clone {f:#x}', 56, f | 17, 0, 0, 0, 0) for f in "
    "(0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000, 0x80)], []) + called('clone3', 435, 0, 0)"
    " + called('setns', 308, 0, 0)",
    "system calls": "sum([called(n, c, *a) for n, c, *a in (('ptrace', 101, 16, 1, 0, 0), ('mount', 165, 0, 0, 0, 0, 0), ('umount2', 166, 0, 0), "
    "('pivot_root', 155, 0, 0), ('bpf', 321, 0, 0, 0), ('perf_event_open', 298, 0, 0, 0, 0, 0), ('keyctl', 250, 0, 0), ('add_key', 248, 0, 0, 0, 0, 0), "
    "('request_key', 249, 0, 0, 0, 0), ('userfaultfd', 323, 0), ('io_uring_setup', 425, 1, 0), ('open_by_handle_at', 304, 0, 0, 0), "
    "('name_to_handle_at', 303, 0, 0, 0, 0, 0), ('kexec_load', 246, 0, 0, 0, 0), ('init_module', 175, 0, 0, 0), ('reboot', 169, 0, 0, 0, 0), "
    "('swapon', 167, 0, 0), ('process_vm_readv', 310, 1, 0, 0, 0, 0, 0), ('process_vm_writev', 311, 1, 0, 0, 0, 0, 0), ('fsopen', 430, 0, 0), "
    "('open_tree', 428, 0, 0, 0), ('move_mount', 429, 0, 0, 0, 0, 0), ('fsmount', 432, 0, 0, 0), ('mount_setattr', 442, 0, 0, 0, 0, 0), "
    "('pidfd_getfd', 438, 0, 0, 0), ('personality', 135, 0x0400000), ('settimeofday', 164, 0, 0), ('sethostname', 170, 0, 0), "
    "('mknod', 133, 0, 0o60644, 0), ('fanotify_init', 300, 0, 0), ('unknown', 600, 0))], [])",
    "x32 and i386": "found = []\nfor trial in ('libc.syscall(0x40000000 + 39)', \"ctypes.CFUNCTYPE(ctypes.c_int)(page)()\"):\n    pid = os.fork()\n"
    "    if pid == 0:\n        import mmap\n        m = mmap.mmap(-1, 4096, prot=7)\n        m.write(bytes.fromhex('b814000000cd80c3'))\n"
    "        page = ctypes.addressof(ctypes.c_char.from_buffer(m))\n        os._exit(0 if eval(trial) > 0 else 1)\n"
    "    if os.waitpid(pid, 0)[1] == 0:\n        found.append(trial)\nfound",
    "users": "found = []\nfor act in (lambda: os.setuid(0), lambda: os.setgroups([0]), lambda: os.setresuid(0, 0, 0), lambda: os.chown('/tmp', 0, 0)):\n"
    "    try:\n        act()\n        found.append(1)\n    except OSError: pass\nfound + [c for c in [os.getuid()] if c == 0]",
    "set-user-id programs": "import subprocess\n[p for p in ('/usr/bin/su', '/usr/bin/passwd', '/usr/bin/mount') if os.path.exists(p) and b'Uid:\\t0' in "
    "subprocess.run(['/bin/sh', '-c', f'exec {p} </dev/null & cat /proc/$!/status'], capture_output=True).stdout]",
    "terminal input": "import fcntl\nfound = []\ntry:\n    fcntl.ioctl(0, 0x5412, b'x')\n    found = ['TIOCSTI']\nexcept OSError as e:\n"
    "    found = [] if e.errno in (errno.EPERM, errno.ENOTTY) else [str(e)]\nfound",
    "overlay attributes": "found = []\nopen('/tmp/f', 'w').close()\nfor name in ('trusted.overlay.redirect', 'security.capability', 'trusted.overlay.opaque'):\n"
    "    try:\n        os.setxattr('/tmp/f', name, b'y')\n        found.append(name)\n    except OSError: pass\nfound",
    "network": "found = []\nfor host in ('169.254.169.254', '10.0.0.1', '1.1.1.1', '192.168.0.1'):\n    s = socket.socket()\n    s.settimeout(1)\n    try:\n"
    "        s.connect((host, 80))\n        found.append(host)\n    except OSError: pass\n    s.close()\nfound + [n for n in os.listdir('/sys/class/net') if n != 'lo'] if "
    "os.path.isdir('/sys/class/net') else found",
    "other people": "[p for p in os.listdir('/proc') if p.isdigit() and os.stat('/proc/' + p).st_uid != os.getuid()]",
    "host files": "[p for p in ('/etc/shadow', *map('/root'.__add__, ('/.bashrc', '/.ssh')), '/boot', '/var/lib/dpkg', '/etc/hosts.allow', '/lost+found') if os.path.exists(p)]",
    "more rights than one": "status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n[n for n in ('CapInh', 'CapBnd', 'CapAmb') "
    "if int(status[n], 16)] + ([status['CapEff']] if int(status['CapEff'], 16) & ~(1 << 18) else []) + ([] if status['Seccomp'].strip() == '2' and "
    "status['NoNewPrivs'].strip() == '1' else ['unconfined'])",
    "settings of the kernel": "def written(p):\n    try:\n        with open(p, 'r+b', 0) as file: return file.write(file.read(4096)) >= 0\n    except OSError: return False\n"
    "[p for top in ('/proc/sys', '/sys') for d, _, fs in os.walk(top) for f in fs for p in [os.path.join(d, f)] if os.access(p, os.W_OK) and written(p)]",
    "sockets of others": "import stat\nmine = os.stat('/').st_dev\n[os.path.join(d, f) for top in ('/', '/run', '/tmp', '/dev', '/var', '/mnt') for d, ds, fs in os.walk(top)"
    " if not ds.__setitem__(slice(None), [] if d == '/' else ds) for f in fs if stat.S_ISSOCK(os.lstat(os.path.join(d, f)).st_mode)]"
    " + [line for line in open('/proc/net/unix').readlines()[1:] if line.split()[7:]]",
    "whiteouts": "import shutil\nfound = []\nfor path in ('/tmp/w', '/usr/bin/w'):\n    found += [path] if libc.mknod(path.encode(), 0o20644, 0) == 0 else []\n"
    "shutil.rmtree('/tmp/d', ignore_errors=True)\nos.makedirs('/tmp/d/e')\nfor name in ('opaque', 'redirect', 'metacopy', 'origin'):\n"
    "    for kind in ('user', 'trusted'):\n        for path in ('/tmp/d', '/usr', '/home'):\n            try: os.setxattr(path, f'{kind}.overlay.{name}', b'/../../../..')\n"
    "            except OSError: pass\nfound + [n for n in os.listdir('/tmp/d') if n != 'e'] + [n for n in ('bin', 'lib') if not os.listdir('/usr/' + n)]",
    "memory of the template": "found = []\nfor line in open('/proc/self/maps'):\n    area, rights = line.split()[:2]\n"
    "    if '/memfd:template' not in line: continue\n    begin, end = (int(part, 16) for part in area.split('-'))\n"
    "    found += opened(f'/proc/self/map_files/{area}', os.O_RDONLY)\n    if rights[3] != 's': continue\n"
    "    if libc.mprotect(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), 3) == 0: found.append(area)\n"
    "    try:\n        with open('/proc/self/mem', 'r+b', 0) as file: file.seek(begin), file.write(b'x'), found.append('mem')\n"
    "    except OSError: pass\nfound",
    # the last one: who breaks out is nowhere, and cannot come back
    "chroot in chroot": "found = []\ntry:\n    os.mkdir('/tmp/in')\n    back = os.open('/', os.O_RDONLY)\n    os.chroot('/tmp/in')\n    os.fchdir(back)\n"
    "    for _ in range(50):\n        os.chdir('..')\n    os.chroot('.')\n    found = [n for n in os.listdir('/') if n not in ('etc', 'proc', 'mnt', 'root', 'dev', "
    "'sys', 'usr', 'tmp', 'var', 'home', 'sbin', 'lib', 'opt', 'lib64', 'run', 'srv', 'bin', 'work')]\nexcept OSError: pass\nfound",
}


def tried(sandbox):
    """What worked, by name, in a sandbox each may break."""
    found = {}
    for name, code in ESCAPES.items():
        done = sandbox.run_code(HEAD + code, timeout=60)
        if done.text != "[]":
            found[name] = done.text or f"{done.error and done.error.traceback}"
    return found
