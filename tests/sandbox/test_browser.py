"""One Chromium, many leases: what one sees, and that another sees nothing of it."""

import http.server
import threading

import pytest

from statepool.core.errors import InvalidRequest, Unavailable
from statepool.sandbox import caps


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
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.send_header("cache-control", "max-age=1000")
        self.end_headers()
        self.wfile.write(b"<title>t</title><body>hello</body>")

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
    with browser.lease() as one, browser.lease() as other:
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
    with browser.lease() as again:
        page = again.page()
        again.goto(page, site)
        assert page.evaluate(LOOK) == ["", 0, 0, 0, 0]


def test_nothing_is_left_of_a_lease(browser, site):
    with browser.lease() as warm:
        warm.goto(warm.page(), site)
    rest = len(browser.processes())
    for _ in range(3):
        with browser.lease() as lease:
            lease.goto(lease.page(), site)
    assert len(browser.processes()) <= rest + 1  # Chromium keeps one renderer ready
    assert len(browser._client.contexts) <= 1


@pytest.mark.parametrize("url", ["file:///etc/passwd", "chrome://version", "view-source:file:///etc/passwd"])
def test_addresses_of_the_machine_are_not_for_agents(browser, url):
    with browser.lease() as lease:
        page = lease.page()
        with pytest.raises(InvalidRequest):
            lease.goto(page, url)
        with pytest.raises(Exception, match=r"ERR_|Cannot|failed"):
            page.goto(url, timeout=5000)
        page.wait_for_timeout(200)  # the page of the error
        assert "root:" not in page.content()


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
