# ruff: noqa: E501  # programs are easier to read in one line
"""Egress: what is on the list is reached through the proxy, and nothing else by any way."""

import http.client
import http.server
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statepool.core.errors import InvalidRequest
from statepool.sandbox import Sandbox, net


class _Site(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"{self.path} {self.headers['host']}".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class _Lasting(_Site):
    protocol_version = "HTTP/1.1"

    def end_headers(self):
        if self.close_connection:
            self.send_header("connection", "close")
        super().end_headers()


@pytest.fixture(scope="module")
def site():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Site)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


FETCH = """
import urllib.request, urllib.error
def fetch(url):
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code
    except OSError as error:
        return type(error).__name__
"""


def test_a_sandbox_reaches_what_is_allowed_and_nothing_else(pool, site):
    with Sandbox(pool=pool) as sandbox:
        answer, fds = sandbox.lease.ask("listen", 0)
        proxy = net.Proxy(socket.socket(fileno=fds[0]), ["localhost"], private=True)
        url = f"http://127.0.0.1:{answer['port']}"
        sandbox.add_variables({"http_proxy": url, "no_proxy": ""})
        code = (
            FETCH
            + f"[fetch(u) for u in ('http://localhost:{site}/a?b=c', 'http://example.com/', 'http://127.0.0.1:{site}/')]"
        )
        assert sandbox.run_code(code).text == f"['/a?b=c localhost:{site}', 403, 403]"
        tunnel = (
            "import socket\nhost, port = '127.0.0.1', " + str(answer["port"]) + "\ndef through(line):\n"
            "    with socket.create_connection((host, port), 10) as s:\n        s.sendall(line + b' HTTP/1.1\\r\\n\\r\\n')\n"
            "        head = s.recv(4096)\n        if b' 200 ' not in head: return head.split()[1] if head else b''\n"
            "        s.sendall(b'GET /t HTTP/1.0\\r\\nhost: x\\r\\n\\r\\n')\n        return s.recv(4096).split(b'\\r\\n')[0]\n"
        )
        lines = f"(b'CONNECT localhost:{site}', b'CONNECT 127.0.0.1:{site}', b'CONNECT localhost\\x00.example.com:1', b'NONSENSE')"
        done = sandbox.run_code(tunnel + f"[through(line) for line in {lines}]")
        assert done.text == "[b'HTTP/1.0 200 OK', b'403', b'403', b'403']", done.error
        proxy.close()


def test_requests_on_one_connection_each_go_to_their_own_host():
    """A client that keeps its connection to a proxy may name another host in the next request."""
    servers = [http.server.ThreadingHTTPServer((host, 0), _Lasting) for host in ("127.0.0.1", "127.0.0.2")]
    threads = [threading.Thread(target=server.serve_forever) for server in servers]
    for thread in threads:
        thread.start()
    listening = socket.create_server(("127.0.0.1", 0))
    line = http.client.HTTPConnection(*listening.getsockname(), timeout=10)  # opens a new one where it is told to
    proxy = net.Proxy(listening, ["127.0.0.1", "127.0.0.2"], private=True)
    for server in servers:
        host = f"{server.server_address[0]}:{server.server_port}"
        line.request("GET", f"http://{host}/x", headers={"Proxy-Connection": "keep-alive", "Host": host})
        with line.getresponse() as answer:
            assert answer.read() == f"/x {host}".encode()
    line.close()
    proxy.close()
    for server, thread in zip(servers, threads, strict=True):
        server.shutdown()
        thread.join()
        server.server_close()


def test_private_addresses_are_refused_even_if_they_are_on_the_list(pool, site):
    with Sandbox(pool=pool, network=["localhost", "*.internal"]) as sandbox:
        code = FETCH + f"import os\nos.environ['no_proxy'] = ''\nfetch('http://localhost:{site}/')"
        assert sandbox.run_code(code).text == "403"
        assert "http_proxy" in sandbox.commands.run("env").stdout
    with Sandbox(pool=pool) as sandbox:
        assert sandbox.run_code(FETCH + f"fetch('http://127.0.0.1:{site}/')").text == "'URLError'"


@pytest.mark.parametrize("host", ["", "a b", "http://x", "x\0", "..", "-x", "x/y"])
def test_what_is_no_host_is_refused(pool, host):
    with pytest.raises(InvalidRequest, match="network"), Sandbox(pool=pool) as sandbox:
        net.grant(sandbox, [host])


@given(st.from_regex(r"[a-z]{1,8}(\.[a-z]{1,8}){0,3}", fullmatch=True))
def test_patterns(host):
    assert net.allowed(host, [host])
    assert net.allowed("a." + host, ["*." + host])
    assert not net.allowed(host, ["*." + host])
    assert not net.allowed(host + ".evil", [host, "*." + host])
