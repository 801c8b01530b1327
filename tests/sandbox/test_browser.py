"""One Chromium, many leases: what one sees, and that another sees nothing of it."""

import contextlib
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from statepool.core.errors import InvalidRequest, Unavailable
from statepool.sandbox import caps, devtools


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("playwright")
    if not any(item.name == "browser" and item.works for item in caps.probe()):
        pytest.skip("no Chromium here")
    from statepool.sandbox.browser import Browser

    with Browser() as made:
        yield made


class _Site(http.server.BaseHTTPRequestHandler):
    hits = []  # noqa: RUF012  # of all requests

    def do_GET(self):
        self.hits.append(self.path)
        if "?" in self.path:
            self.send_response(302)
            self.send_header("location", self.path.partition("?")[2])
            self.send_header("content-length", "0")
            self.end_headers()
            return
        self.send_response(200)
        kind = "text/javascript" if self.path == "/worker.js" else "text/html"
        self.send_header("content-type", kind)
        self.send_header("cache-control", "max-age=1000")
        self.end_headers()
        self.wfile.write(b"0" if kind == "text/javascript" else b"<title>t</title><body>hello</body>")

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Site)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


LEAVE = """async (mark) => {
  document.cookie = `c=${mark}; max-age=1000`; localStorage.setItem('l', mark); sessionStorage.setItem('s', mark);
  await new Promise(done => {
    const r = indexedDB.open('d');
    r.onupgradeneeded = () => r.result.createObjectStore('o');
    r.onsuccess = done;
  });
  const cache = await caches.open('k'); await cache.put('/x', new Response(mark));
}"""
LOOK = """async () => [document.cookie, Object.keys(localStorage).length, Object.keys(sessionStorage).length,
  (await indexedDB.databases()).length, (await caches.keys()).length]"""


def test_contexts_share_nothing(browser, site):
    with browser.lease(network=None) as one, browser.lease(network=None) as other:
        mine, theirs = one.page(), other.page()
        one.goto(mine, site)
        mine.evaluate(LEAVE, "mark")
        assert mine.evaluate(LOOK) == ["c=mark", 1, 1, 1, 1]
        before = len(_Site.hits)
        other.goto(theirs, site)
        assert theirs.evaluate(LOOK) == ["", 0, 0, 0, 0]
        assert len(_Site.hits) > before, "the cache is not shared"
        assert len(other.context.pages) == 1
        assert one.memory_bytes() > 0 and other.memory_bytes() > 0
    with browser.lease(network=None) as again:
        page = again.page()
        again.goto(page, site)
        assert page.evaluate(LOOK) == ["", 0, 0, 0, 0]


WORK = """async () => {
  window.heard = []; new BroadcastChannel('b').onmessage = event => heard.push(event.data);
  await navigator.serviceWorker.register('/worker.js'); await navigator.serviceWorker.ready;
  return (await navigator.serviceWorker.getRegistrations()).length;
}"""


def test_workers_and_channels_are_a_leases_own(browser, site):
    count = "async () => (await navigator.serviceWorker.getRegistrations()).length"
    with browser.lease(network=None) as one, browser.lease(network=None) as other:
        mine, second, theirs = one.page(), one.page(), other.page()
        for lease, page in ((one, mine), (one, second), (other, theirs)):
            lease.goto(page, site)
        assert mine.evaluate(WORK) == 1 == second.evaluate(count)
        assert theirs.evaluate(count) == 0
        theirs.evaluate("new BroadcastChannel('b').postMessage('theirs')")
        second.evaluate("new BroadcastChannel('b').postMessage('mine')")
        mine.wait_for_function("heard.length > 0")
        assert mine.evaluate("heard") == ["mine"]
    with browser.lease(network=None) as again:
        page = again.page()
        again.goto(page, site)
        assert page.evaluate(count) == 0


def test_nothing_is_left_of_a_lease(browser, site):
    with browser.lease(network=None) as warm:
        warm.goto(warm.page(), site)
    rest = len(browser.processes())
    for _ in range(3):
        with browser.lease(network=None) as lease:
            lease.goto(lease.page(), site)
    assert len(browser.processes()) <= rest + 1  # Chromium keeps one renderer ready
    assert len(browser._client.contexts) <= 1


ADDRESSES = (
    *("file:///etc/passwd", "FILE:/etc/passwd", " fi\tle:///etc/passwd", "filesystem:file:///x", "about:version"),
    *("chrome://version", "chrome:gpu", "chrome-untrusted://terms", "chrome-extension://x/", "devtools://devtools/x"),
    *("view-source:file:///etc/passwd", "view-source:http://127.0.0.1/"),
)


def test_addresses_of_the_machine_are_not_for_agents(browser):
    with browser.lease() as lease:
        page = lease.page()
        protocol = lease.context.new_cdp_session(page)
        for url in ADDRESSES:
            with pytest.raises(InvalidRequest):
                lease.goto(page, url)
            for act in (
                lambda url=url: page.goto(url, timeout=5000),
                lambda url=url: page.main_frame.goto(url, timeout=5000),
                lambda url=url: protocol.send("Page.navigate", {"url": url}),
                lambda url=url: protocol.send("Target.createTarget", {"url": url}),
            ):
                with pytest.raises(Exception, match="is not for agents"):
                    act()
            assert page.url == "about:blank" and len(lease.context.pages) == 1
        with pytest.raises(Exception, match="files of the machine"):
            protocol.send("Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": "/tmp"})
        page.set_content("<input type=file>")
        with pytest.raises(Exception, match="paths of the machine"):
            protocol.send("DOM.setFileInputFiles", {"files": ["/etc/passwd"], "backendNodeId": 1})
        page.set_input_files("input", {"name": "x", "mimeType": "text/plain", "buffer": b"given"})
        assert page.evaluate("document.querySelector('input').files[0].text()") == "given"


SCHEMES = (
    "http",
    "https",
    "data",
    "blob",
    "file",
    "chrome",
    "about",
    "view-source",
    "devtools",
    "javascript",
    "ab.c+d-1",
)
URLS = st.builds(
    lambda parts: "".join(parts),
    st.lists(
        st.one_of(st.sampled_from([*SCHEMES, ":", "//", "/", "blank", "\t", "\n", " ", "\0", "#", "?"]), st.text())
    ),
)


def test_addresses_are_read_as_chromium_reads_them(browser):
    """The oracle is Chromium's own parser: what it takes for an address of another scheme is refused."""
    with browser.lease() as lease:
        page = lease.page()

        @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(URLS, min_size=50, max_size=100))
        def holds(urls):
            code = "urls => urls.map(u => { try { return new URL(u).href } catch { return null } })"
            for url, seen in zip(urls, page.evaluate(code, urls), strict=True):
                if seen is not None:
                    plain = seen.split(":")[0] in SCHEMES[:4] or seen.split("#")[0].split("?")[0] == "about:blank"
                    assert devtools.refused(url) <= (not plain) or seen.startswith("about:srcdoc"), (url, seen)
                    assert plain or devtools.refused(url) or seen.startswith("about:srcdoc"), (url, seen)

        holds()


def test_a_page_gets_nowhere_either(browser, site):
    """By scripts, links, frames and redirects; nor to what another lease keeps."""
    with browser.lease(network=None) as one, browser.lease(network=None) as other:
        mine = one.page()
        one.goto(mine, site)
        blob = mine.evaluate("URL.createObjectURL(new Blob(['kept']))")
        assert mine.evaluate("u => fetch(u).then(r => r.text())", blob) == "kept"
        for url in ("file:///etc/passwd", "chrome://version", "devtools://devtools/x", "view-source:" + site, blob):
            for code in (
                "u => { location.href = u }",
                "u => { window.open(u) }",
                "u => { const a = document.createElement('a'); a.href = u; document.body.append(a); a.click() }",
                "u => { const f = document.createElement('iframe'); f.src = u; document.body.append(f) }",
            ):
                theirs = other.page()
                other.goto(theirs, site)
                assert theirs.evaluate("u => fetch(u).then(r => r.text(), () => 'refused')", url) == "refused"
                theirs.evaluate(code, url)
            with pytest.raises(Exception, match="ERR_"):
                other.page().goto(f"{site}to?{url}", timeout=5000)
        theirs.wait_for_timeout(300)
        for page in other.context.pages:
            for frame in page.frames:
                assert frame.url in (
                    site,
                    "about:blank",
                    "about:blank#blocked",
                    "chrome-error://chromewebdata/",
                    "",
                    ":",
                )
                if frame.url not in ("", ":"):  # there nothing was loaded, and content() would wait for it
                    assert "root:" not in frame.content() and "kept" not in frame.content()


def test_a_lease_reaches_public_addresses_only(browser, site):
    """No other service of this machine, and no DevTools of the browser itself."""
    listening = {
        line.split()[9] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if line.split()[3] == "0A"
    }
    held = set()
    for pid in browser.processes():
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                held.add(str(path.readlink()).removeprefix("socket:[").rstrip("]"))
    assert not listening & held
    port = site.rstrip("/").rpartition(":")[2]
    with browser.lease() as lease, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        page = lease.page()
        before = len(_Site.hits)
        for host in ("127.0.0.1", "localhost", "127.1", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]"):
            with contextlib.suppress(Exception):  # some are refused as no host at all
                assert page.goto(f"http://{host}:{port}/", timeout=5000).status == 403
        page = lease.page()
        page.goto("data:text/html,x")
        page.evaluate(
            "async u => { const p = new RTCPeerConnection({iceServers: [{urls: u}]}); p.createDataChannel('d');"
            "await p.setLocalDescription(); await new Promise(r => setTimeout(r, 500)) }",
            f"stun:127.0.0.1:{udp.getsockname()[1]}",
        )
        udp.setblocking(False)
        with pytest.raises(BlockingIOError):
            udp.recv(1)
        assert len(_Site.hits) == before
    with pytest.raises(InvalidRequest, match="network"):
        browser.lease(network=["http://x"])


MANAGER = """
import sys
from statepool.sandbox.browser import Browser
browser = Browser()
lease = browser.lease()
lease.goto(lease.page(), "data:text/html,x")
print(browser._session, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("victim", ["manager", "filter"])
def test_a_browser_ends_with_who_drives_it(browser, victim):
    process = subprocess.Popen(
        [sys.executable, "-c", MANAGER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    session = int(process.stdout.readline())

    def left():
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = path.read_text().rpartition(")")[2].split()
                found += [path.parent.name] if int(fields[3]) == session and fields[0] != "Z" else []
        return found

    assert len(left()) > 3
    os.kill(process.pid if victim == "manager" else session, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while left():
        assert time.monotonic() < deadline, left()
        time.sleep(0.02)
    process.kill()
    process.communicate()


def test_a_browser_that_is_not_there():
    pytest.importorskip("playwright")
    from statepool.sandbox.browser import Browser

    raised = []

    def start():
        try:
            Browser(executable="/bin/false")
        except Unavailable as error:
            raised.append(error.message)

    thread = threading.Thread(target=start)  # playwright has one client per thread
    thread.start()
    thread.join()
    assert "does not start" in raised[0]
