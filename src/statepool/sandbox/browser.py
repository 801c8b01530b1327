"""One Chromium for many agents: each leases a browser context of its own, and pays for its pages only.

Contexts share nothing that a page can see: cookies, storage, cache, permissions and targets are a context's own. Tabs
of one context would share them, so a lease is never a tab of somebody else's. Each reaches the network through a proxy
of its own; addresses of the machine and of the browser itself are refused on the way to Chromium (``devtools``).
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from statepool.core.errors import InvalidRequest, Unavailable
from statepool.sandbox import devtools
from statepool.sandbox.errors import SandboxGone
from statepool.sandbox.net import Proxy, checked

__all__ = ["Browser", "BrowserLease"]

_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
_START_SECONDS = 60.0
_END_SECONDS = 10.0
_NOBODY = 65534
_FLAGS = (
    *("--remote-debugging-pipe", "--headless", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--no-default-browser-check", "--disable-background-networking", "--disable-extensions", "--mute-audio"),
    "--force-webrtc-ip-handling-policy=disable_non_proxied_udp",
    "--webrtc-ip-handling-policy=disable_non_proxied_udp",
)


class Browser(contextlib.AbstractContextManager["Browser"]):
    """One Chromium process tree. Use it from the thread that made it: playwright's synchronous client wants that.

    Args:
        most_leases: after so many the process is replaced as soon as nobody leases it.
        executable: path of the browser; found by itself by default.

    Raises:
        Unavailable: no Chromium or no playwright here, or it does not start.
    """

    def __init__(self, *, most_leases: int = 200, executable: str | None = None) -> None:
        try:
            from playwright.sync_api import Error, sync_playwright
        except ImportError:
            raise Unavailable("browser: needs playwright; pip install 'statepool[e2e]'") from None
        found = executable or next((path for name in _NAMES if (path := shutil.which(name))), None)
        if found is None:
            raise Unavailable("browser: no Chromium on this machine; sh scripts/browser.sh finds or installs one")
        self._executable, self._most, self._error = found, most_leases, Error
        self._playwright = sync_playwright().start()
        self._lock = threading.Lock()
        self._leases: set[BrowserLease] = set()
        self._count = 0
        try:
            self._start()
        except BaseException:
            self._playwright.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def lease(self, *, network: Sequence[str] | None = ("*",), **options: Any) -> BrowserLease:
        """A context of its own; ``options`` are those of playwright's ``new_context``.

        Args:
            network: hosts it may reach, as of a sandbox; any by default. Names that lead to addresses that are not
                public are refused all the same. None: no proxy, whatever this machine can reach.

        Raises:
            InvalidRequest: a host is no name.
            SandboxGone: the browser has ended.
        """
        hosts = None if network is None else checked(network)
        if self._count >= self._most and not self._leases:
            self._stop()
            self._start()
        if not self._client.is_connected() or not self.processes():
            raise SandboxGone("the browser has ended")
        proxy = None
        with contextlib.ExitStack() as undo:
            if hosts is not None:
                server = socket.create_server(("127.0.0.1", 0))
                options["proxy"] = {"server": f"http://127.0.0.1:{server.getsockname()[1]}"}
                proxy = Proxy(server, hosts)
                undo.callback(proxy.close)
            context = self._client.new_context(accept_downloads=False, **options)
            undo.pop_all()
        made = BrowserLease(self, context, proxy)
        self._leases.add(made)
        self._count += 1
        return made

    def processes(self) -> list[int]:
        """Process ids of the whole tree."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.getsid(int(path.name)) == self._session and ") Z " not in (path / "stat").read_text():
                    found.append(int(path.name))
        return found

    def close(self) -> None:
        """End every lease and the browser."""
        for lease in list(self._leases):
            lease.close()
        self._stop()
        self._playwright.stop()

    def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="statepool-browser-")
        folder = Path(self._folder.name)
        folder.chmod(0o711)
        profile, script, pid = folder / "profile", folder / "start", folder / "pid"
        profile.mkdir()
        if os.geteuid() == 0:
            os.chown(profile, _NOBODY, _NOBODY)
        # Playwright starts one program, and gives it the pipe: a script that becomes the filter.
        command = shlex.join([sys.executable, "-I", "-S", str(devtools.__file__), self._executable])
        script.write_text(f'#!/bin/sh\necho $$ > {shlex.quote(str(pid))}\nexec {command} "$@"\n')
        script.chmod(0o700)
        try:
            self._client = self._playwright.chromium.launch(
                executable_path=script,
                ignore_default_args=True,
                args=[*_FLAGS, f"--user-data-dir={profile}", "about:blank"],
                env={"HOME": str(profile), "PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LANG": "C.UTF-8"},
                timeout=1e3 * _START_SECONDS,
            )
        except self._error as error:
            self._folder.cleanup()
            reason = str(error).strip().splitlines()[0]
            raise Unavailable(
                f"browser: {self._executable} does not start ({reason}); try it by hand as an ordinary user"
            ) from None
        self._session, self._count = int(pid.read_text()), 0

    def _stop(self) -> None:
        with contextlib.suppress(self._error):  # it may have ended already
            self._client.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._session, signal.SIGKILL)
        deadline = time.monotonic() + _END_SECONDS
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.005)
        self._folder.cleanup()


class BrowserLease(contextlib.AbstractContextManager["BrowserLease"]):
    """One agent's context: pages, cookies and storage of its own. What it leaves ends with it."""

    def __init__(self, browser: Browser, context: Any, proxy: Proxy | None) -> None:
        self._browser, self.context, self._proxy = browser, context, proxy
        self._pids: set[int] = set()

    def __exit__(self, *_: object) -> None:
        self.close()

    def page(self) -> Any:
        """A new page, as playwright has them. Its renderer counts for this lease."""
        with self._counting():
            return self.context.new_page()

    def goto(self, page: Any, url: str) -> None:
        """Lead a page to an address; a renderer that is started for it counts for this lease.

        Raises:
            InvalidRequest: an address of the machine or the browser itself, such as file: or chrome:.
        """
        if devtools.refused(url):
            raise InvalidRequest(f"url: {url!r} is not for agents", param="url")
        with self._counting():
            page.goto(url)

    def memory_bytes(self) -> int:
        """Proportional set size of the renderers that were started for it."""
        total = 0
        for pid in self._pids:
            with contextlib.suppress(OSError, StopIteration):
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                total += 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return total

    def close(self) -> None:
        """Dispose of the context: its pages, storage and renderers end."""
        self._browser._leases.discard(self)
        with contextlib.suppress(Exception):  # playwright raises its own errors if the browser has ended already
            self.context.close()
        if self._proxy is not None:
            self._proxy.close()

    @contextlib.contextmanager
    def _counting(self) -> Iterator[None]:
        with self._browser._lock:
            before = set(self._browser.processes())
            yield
            self._pids |= set(self._browser.processes()) - before
