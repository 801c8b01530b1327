"""One Chromium for many agents: each leases a browser context of its own, and pays for its pages only.

Contexts share nothing that a page can see: cookies, storage, cache, permissions and targets are a context's own. Tabs
of one context would share them, so a lease is never a tab of somebody else's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from statepool.core.errors import InvalidRequest, Unavailable
from statepool.sandbox.errors import SandboxGone

__all__ = ["Browser", "BrowserLease"]

_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
_START_SECONDS = 60.0
_NOBODY = 65534
_BLOCKED = ("file:", "chrome:", "devtools:", "view-source:")
_FLAGS = (
    *("--remote-debugging-port=0", "--headless", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--no-default-browser-check", "--disable-background-networking", "--disable-extensions", "--mute-audio"),
)


class Browser:
    """One Chromium process tree. Use it from the thread that made it: playwright's synchronous client wants that.

    Args:
        most_leases: after so many the process is replaced as soon as nobody leases it.
        executable: path of the browser; found by itself by default.

    Raises:
        Unavailable: no Chromium or no playwright here, or it does not start.
    """

    def __init__(self, *, most_leases: int = 200, executable: str | None = None) -> None:
        try:
            from playwright.sync_api import sync_playwright
        except ImportError:
            raise Unavailable("browser: needs playwright; pip install 'statepool[e2e]'") from None
        found = executable or next((path for name in _NAMES if (path := shutil.which(name))), None)
        if found is None:
            raise Unavailable("browser: no Chromium on this machine; sh scripts/browser.sh finds or installs one")
        self._executable, self._most = found, most_leases
        self._playwright = sync_playwright().start()
        self._lock = threading.Lock()
        self._leases: set[BrowserLease] = set()
        self._count = 0
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._start()
        except Exception:
            self._playwright.stop()
            raise

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def lease(self, **options: Any) -> BrowserLease:
        """A context of its own; ``options`` are those of playwright's ``new_context``."""
        if self._count >= self._most and not self._leases:
            self._stop()
            self._start()
        if self._process is None or self._process.poll() is not None:
            raise SandboxGone("the browser has ended")
        made = BrowserLease(self, self._client.new_context(accept_downloads=False, **options))
        self._leases.add(made)
        self._count += 1
        return made

    def processes(self) -> list[int]:
        """Process ids of the whole tree."""
        if self._process is None:
            return []
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                if int(path.read_text().rpartition(")")[2].split()[3]) == self._process.pid:  # its session
                    found.append(int(path.parent.name))
        return found

    def close(self) -> None:
        """End every lease and the browser."""
        for lease in list(self._leases):
            lease.close()
        self._stop()
        self._playwright.stop()

    def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="statepool-browser-")
        root = os.geteuid() == 0
        if root:
            os.chown(self._folder.name, _NOBODY, _NOBODY)
        profile = Path(self._folder.name)
        # As an ordinary user Chromium's own sandbox works; as root it would have to be switched off.
        self._process = subprocess.Popen(
            [self._executable, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={"HOME": str(profile), "PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LANG": "C.UTF-8"},
            user=_NOBODY if root else None,
            group=_NOBODY if root else None,
            extra_groups=[] if root else None,
        )
        deadline = time.monotonic() + _START_SECONDS
        port = profile / "DevToolsActivePort"
        while not (port.exists() and "\n" in port.read_text()):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._stop()
                raise Unavailable(f"browser: {self._executable} does not start; try it by hand as an ordinary user")
            time.sleep(0.01)
        self._client = self._playwright.chromium.connect_over_cdp(
            f"http://127.0.0.1:{port.read_text().splitlines()[0]}"
        )
        self._count = 0

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            self._folder.cleanup()


class BrowserLease:
    """One agent's context: pages, cookies and storage of its own. What it leaves ends with it."""

    def __init__(self, browser: Browser, context: Any) -> None:
        self._browser, self.context = browser, context
        self._pids: set[int] = set()
        context.route(lambda url: url.startswith(_BLOCKED), lambda route: route.abort())

    def __enter__(self) -> BrowserLease:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def page(self) -> Any:
        """A new page, as playwright has them. Its renderer counts for this lease."""
        with self._counting():
            return self.context.new_page()

    def goto(self, page: Any, url: str) -> None:
        """Lead a page to an address; a renderer that is started for it counts for this lease.

        Raises:
            InvalidRequest: an address of the machine itself, such as file:.
        """
        if url.lower().startswith(_BLOCKED):
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

    @contextlib.contextmanager
    def _counting(self) -> Iterator[None]:
        with self._browser._lock:
            before = set(self._browser.processes())
            yield
            self._pids |= set(self._browser.processes()) - before
