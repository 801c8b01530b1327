"""A real server process over a random model that is always there, and one over the bundled model."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml
from tests.small_models import TEMPLATE, write_model

SOURCE = Path(__file__).parents[2] / "src"
CHAT_PAGE = SOURCE / "statepool" / "dashboard" / "chat"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SIZES = {"desk": (1280, 800), "phone": (390, 844)}
PATIENCE = 240
"""Seconds after which what is waited for has failed: a busy machine may take ten times as long as a quiet one."""


def write_random_model(path: Path, seed: int = 0) -> Path:
    """A random model with a chat template and room for long conversations."""
    return write_model(path, seed, template=TEMPLATE, max_position_embeddings=4096)


class Server:
    """A running ``statepool.serve`` process."""

    def __init__(self, process: subprocess.Popen, url: str, seconds: float) -> None:
        self.process = process
        self.url = url
        self.start_seconds = seconds
        # A connection of its own for every call: one that is kept may be closed by the server as it is used again.
        self.http = httpx.Client(base_url=url, timeout=PATIENCE, limits=httpx.Limits(max_keepalive_connections=0))

    def metric(self, name: str) -> float:
        return self.metrics([name])[0]

    def metrics(self, names: list[str]) -> list[float]:
        text = self.http.get("/metrics").text
        return [self._value(text, name) for name in names]

    @staticmethod
    def _value(text: str, name: str) -> float:
        found = re.search(rf"^statepool_{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        assert found, f"{name} is not among the metrics"
        return float(found[1])

    def children(self) -> list[int]:
        """Process ids of the engine."""
        task = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in task.read_text().split()]

    def wait_until(self, holds, seconds: float = PATIENCE) -> None:
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, "the condition did not come true"
            time.sleep(0.02)

    def all_free(self) -> bool:
        """No sequence is in the engine, and every KV block can be taken."""
        names = ["requests_running", "requests_waiting", "kv_blocks_free", "kv_blocks_total"]
        running, waiting, free, total = self.metrics(names)
        return running + waiting == 0 and free == total


@contextmanager
def run_server(model: Path | str, python: str = sys.executable, **settings):
    """Start a server over ``model``; stop it in the end. Settings are fields of ServeConfig or EngineConfig."""
    engine = {"model": str(model), "threads": 1, "kv_bytes": 8 << 20, **settings.pop("engine", {})}
    cluster, code = settings.pop("cluster", {}), settings.pop("code", {})
    settings = {"port": 0, "chat_page": str(CHAT_PAGE), **settings}
    program = (
        "import sys, json; from pathlib import Path\n"
        "from statepool.engine.config import EngineConfig\n"
        "from statepool.serve.config import ClusterConfig, CodeConfig, ServeConfig\n"
        "from statepool.serve.server import serve\n"
        "engine, cluster, code, settings = map(json.loads, sys.argv[1:])\n"
        "settings['chat_page'] = Path(settings['chat_page'])\n"
        "cluster = ClusterConfig(**{k: Path(v) if k == 'pool_dir' else v for k, v in cluster.items()})\n"
        "settings['code'] = CodeConfig(**code)\n"
        "sys.exit(serve(ServeConfig(engine=EngineConfig(**engine), cluster=cluster, **settings)))"
    )
    begin = time.monotonic()
    # A file, since a pipe that nobody empties would stop the server in the middle of a warning.
    complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115
    process = subprocess.Popen(
        [python, "-W", "error", "-c", program, *map(json.dumps, (engine, cluster, code, settings))],
        stdout=subprocess.PIPE,
        stderr=complaints,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )
    url = None
    lines = []
    for line in process.stdout:
        lines.append(line)
        found = re.search(r"API\s+(http://\S+)/v1", line)
        if found:
            url = found[1]
            break
    if url is None:
        process.communicate(timeout=PATIENCE)
        complaints.seek(0)
        complaint = complaints.read()
        complaints.close()
        pytest.fail(f"the server did not start:\n{''.join(lines)}\n{complaint}")
    server = Server(process, url, time.monotonic() - begin)
    try:
        yield server
    finally:
        server.http.close()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                raise
        else:
            process.communicate()
        complaints.close()


class House:
    """A running ``statepool up``."""

    scanned = False

    def __init__(self, process: subprocess.Popen, url: str, said: str) -> None:
        self.process, self.url = process, url
        self.sandbox = re.search(r"sandboxes at (\S+)", said)[1]
        self.vector = re.search(r"vectors at (\S+)", said)[1]

    def now(self, page: str) -> dict:
        return httpx.get(f"{self.url}/dashboard/now/{page}", timeout=PATIENCE).json()

    def shows(self, page: str, holds) -> dict:
        """What a page says as soon as it is what ``holds`` asks for: pages are made anew once a second or so."""
        end = time.monotonic() + PATIENCE
        while not holds(now := self.now(page)):
            assert time.monotonic() < end, now
            time.sleep(0.1)
        return now


@contextmanager
def run_house(folder: Path, file: dict, *options: str):
    """Start the platform that ``file`` describes; its end must leave none of its processes behind."""
    (folder / "house.yaml").write_text(yaml.safe_dump(file))
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "statepool.cli", "up", str(folder / "house.yaml"), *options],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            found = (re.search(r"dashboard\s+(http://\S+)/dashboard", line) for line in process.stdout)
            url = next((each[1] for each in found if each), None)
            log.seek(0)
            said = log.read()
            assert url, said
            yield House(process, url, said)
            children = descendants(process.pid)
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
    assert [pid for pid in children if Path(f"/proc/{pid}").exists()] == []


def descendants(pid: int) -> list[int]:
    """Processes that ``pid`` started, and those they did."""
    found = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return found + [deep for child in found for deep in descendants(child)]


@pytest.fixture(scope="session")
def random_model(tmp_path_factory):
    """Folder of a random model named ``random``."""
    return write_random_model(tmp_path_factory.mktemp("models") / "random")


@pytest.fixture
def write_checkpoint():
    """A function that writes a random model to a path."""
    return write_random_model


@pytest.fixture(scope="session")
def running():
    """A context manager that starts a server over a model; see ``run_server``."""
    return run_server


@pytest.fixture(scope="session")
def shared_server(random_model):
    """One server for all tests that leave it as they found it."""
    with run_server(random_model) as server:
        yield server


@pytest.fixture
def server(shared_server):
    """The shared server, checked afterwards: alive, nothing running, no block lost."""
    yield shared_server
    assert shared_server.process.poll() is None, "the server died"
    shared_server.wait_until(shared_server.all_free)


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if BROWSER is None:
        pytest.skip("no chromium on this machine")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@contextmanager
def pages(browser, url):
    """A function that opens a page of this server; afterwards nothing may have been said on the console or asked
    elsewhere.
    """
    complaints, foreign, contexts = [], [], []

    def open_one(path, until, size="desk", scheme="light"):
        width, height = SIZES[size]
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE * 1000)
        page.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda asked: foreign.append(asked.url) if not asked.url.startswith(url) else None)
        page.goto(url + path)
        page.wait_for_selector(until)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for url in foreign if not url.startswith("data:")] == []
