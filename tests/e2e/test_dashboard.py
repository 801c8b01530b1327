"""The whole platform from one file, and every page of its dashboard in a real browser."""

import json
import os
import shutil
import signal
import tempfile
import time
import urllib.request
from itertools import islice
from pathlib import Path

import httpx
import numpy as np
import pytest
from tests.e2e.conftest import PATIENCE, SIZES, descendants, pages, run_house, write_random_model

import statepool.store
import statepool.vector
from statepool.core.errors import Unavailable
from statepool.rollout.events import ChunkDone, Dispatch, Finished, Progress, Submit
from statepool.rollout.groups import Response
from statepool.rollout.timeline import Timeline
from statepool.tasks.sequences.families import BY_NAME
from statepool.tasks.sequences.objectives import make
from statepool.tasks.sequences.records import certify

pytestmark = pytest.mark.e2e

PAGES = ("serving", "rollout", "training", "sandboxes", "storage", "sequences", "topology")
SHOTS = os.environ.get("DASHBOARD_SHOTS")
"""A folder for the pictures of the docs; without it they are taken and thrown away."""


def write_timeline(path: Path, upto: int = 10_000) -> None:
    """An iteration of 6 groups of 4 on two engines, in chunks of 64 tokens a second each."""
    now = [0.0]
    rng = np.random.default_rng(5)
    with path.open("w") as file:
        timeline = Timeline(file, 2, "auto", clock=lambda: now[0], wall=lambda: time.time() - 40)
        lengths = rng.integers(60, 700, 24)
        timeline.record([Submit(job, job // 4, job % 4, 20, 800) for job in range(24)], [])
        have, waiting, running = [0] * 24, list(range(24)), {}
        for moment in range(upto):
            now[0] = moment * 0.25
            events, ended = [], []
            for job, (_, since) in list(running.items()):
                gained = min(int((now[0] - since) * 64), 128)
                if have[job] + gained >= lengths[job]:
                    have[job] = int(lengths[job])
                    ended.append(Response(f"g{job // 4}", job % 4, (1,) * have[job], (), "", "stop", "0", 40, 25, ()))
                    events.append(Finished(job, have[job]))
                    del running[job]
                elif gained >= 128:
                    have[job] += gained
                    events.append(ChunkDone(job, have[job]))
                    waiting.append(job)
                    del running[job]
                else:
                    events.append(Progress(job, have[job] + gained))
            starts = []
            for engine in (0, 1):
                while waiting and sum(at == engine for at, _ in running.values()) < 5:
                    job = waiting.pop(0)
                    running[job] = (engine, now[0])
                    starts.append(Dispatch(job, engine, 128, None))
            timeline.record(events, starts)
            for response in ended:
                timeline.answered(response)
            if not running and not waiting:
                return


def write_curve(folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(3)
    with (folder / "curve.jsonl").open("w") as file:
        for step in range(1, 61):
            reward = float(np.clip(1 / (1 + np.exp(-(step - 30) / 7)) + rng.normal(0, 0.03), 0, 1))
            line = {"step": step, "phase": "grpo", "reward": reward, "loss": 1.2 / step, "seconds": 4.2}
            file.write(json.dumps(line | ({"held_out": reward} if step % 5 == 0 else {})) + "\n")


def write_codes(path: Path) -> None:
    with path.open("w") as file:
        for number in (13, 11):
            record, _ = certify(make("labs", {}), BY_NAME["barker"](number))
            file.write(record.json() + "\n")


def write_scan(path: Path) -> bool:
    """One manifold of the smallest census; False where Regina, which has the census, is not installed."""
    try:
        import regina  # noqa: F401
    except ImportError:
        return False
    from statepool.tasks.topology.censuses import census
    from statepool.tasks.topology.scans import Plan, scan

    scan(islice(census(2, 1), 2), Plan(slopes=6), path)
    return True


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    folder = tmp_path_factory.mktemp("house")
    model = write_random_model(folder / "random")
    write_timeline(folder / "rollout.jsonl")
    write_curve(folder / "run")
    write_codes(folder / "codes.jsonl")
    scanned = write_scan(folder / "scan.jsonl")
    rows = np.random.default_rng(0).normal(size=(400, 16)).astype(np.float32)
    index = statepool.vector.Index(16)
    index.build(rows)
    index.save(folder / "docs.idx")
    socket_folder = tempfile.mkdtemp(prefix="house")
    address = f"unix://{socket_folder}/store"
    file = {
        "serve": {"model": str(model), "port": 0, "kv_bytes": "8MiB", "threads": 1, "workers": 1, "pool_bytes": "8MiB"},
        "sandbox": {"port": 0, "ready": 1},
        "store": {"path": str(folder / "store"), "capacity": "16MiB", "listen": address},
        "vector": {"path": str(folder / "docs.idx"), "port": 0},
        "rollout": str(folder / "rollout.jsonl"),
        "train": str(folder / "run"),
        "sequences": {"records": str(folder / "codes.jsonl")},
        "topology": str(folder / "scan.jsonl"),
    }
    with run_house(folder, file) as found:
        with statepool.store.open(address) as store:
            store.dict("memory", keys="str", values="str")["ada"] = "1815"
        found.scanned = scanned
        yield found
    shutil.rmtree(socket_folder)


def cmdline(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_figures_are_of_this_moment(house):
    body = {"model": "random", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    before = house.now("serving")["totals"]["generated_tokens"]
    assert httpx.post(f"{house.url}/v1/chat/completions", json=body, timeout=PATIENCE).status_code == 200
    house.shows("serving", lambda now: now["totals"]["generated_tokens"] > before)
    rollout = house.now("rollout")
    assert (rollout["done"], rollout["responses"], rollout["over"]) == (24, 24, True)
    assert rollout["accepted"] / rollout["drafted"] == 25 / 40
    assert {bar[0] for bar in rollout["bars"]} == {0, 1}
    storage = house.now("storage")
    assert storage["vector"]["rows"] == 400
    assert {"name": "memory", "kind": "dict", "entries": 1} in storage["store"]["structures"]
    assert house.now("sequences")["boards"][0]["best"][0]["exact"] == "5"


def test_a_killed_vector_server_comes_back_with_its_rows(house):
    query = np.ones(16, np.float32)
    with statepool.vector.RemoteIndex(house.vector) as index:
        index.add(query[None], [7000])
        before = index.search(query, 5)
        assert before.ids[0] == 7000
        room = next(pid for pid in descendants(house.process.pid) if b"docs.idx" in cmdline(pid))
        os.kill(room, signal.SIGKILL)
        until = time.monotonic() + PATIENCE
        while True:
            try:
                after = index.search(query, 5)
                break
            except Unavailable:
                assert time.monotonic() < until
                time.sleep(0.1)
    assert (after.ids.tolist(), after.distances.tobytes()) == (before.ids.tolist(), before.distances.tobytes())
    expected = {"state": "live", "rows": 401, "changed": 1}
    house.shows("storage", lambda now: expected.items() <= now["vector"].items())


def test_forks_and_shared_memory_show(house):
    ask = urllib.request.Request(f"{house.sandbox}/sandboxes", b'{"templateID": "base"}', method="POST")
    with urllib.request.urlopen(ask, timeout=PATIENCE) as answer:
        name = json.load(answer)["sandboxID"]
    httpx.post(f"{house.sandbox}/sandboxes/{name}/fork", json={"count": 2}, timeout=PATIENCE).raise_for_status()
    found = house.shows("sandboxes", lambda now: len(now["sandboxes"]) == 3)
    assert [each["parent"] for each in found["sandboxes"]] == [None, name, name]
    if any(each["memory_bytes"] for each in found["sandboxes"]):  # this host has cgroups
        assert sum(each["shared_bytes"] for each in found["memory"].values()) > 0


@pytest.fixture
def open_page(browser, house):
    """A function that opens the dashboard."""
    with pages(browser, house.url) as open_one:
        yield lambda size="desk", scheme="light", page="serving": open_one(
            f"/dashboard#{page}", f"main[data-page={page}]", size, scheme
        )


def shoot(page, name, tmp_path):
    folder = Path(SHOTS) if SHOTS else tmp_path
    page.screenshot(path=folder / f"dashboard-{name}.png")


def test_every_page_shows_its_room(open_page, house, tmp_path):
    page = open_page()
    words = {
        "serving": "Pool nodes",
        "rollout": "24 of 24",
        "training": "held-out solved",
        "sandboxes": "memory shared",
        "storage": "Vector index",
        "sequences": "Autocorrelation",
        "topology": "manifolds" if house.scanned else "Not there at this moment",
    }
    for name in PAGES:
        page.click(f"nav a[href='#{name}']")
        page.wait_for_selector(f"main[data-page={name}]")
        page.get_by_text(words[name]).first.wait_for()
        shoot(page, name, tmp_path)


def test_a_code_and_a_manifold_are_chosen(open_page, house):
    from playwright.sync_api import expect

    page = open_page(page="sequences")
    page.wait_for_selector("figure polyline")
    first = page.get_attribute("figure polyline", "points")
    page.select_option("#board", index=1)
    expect(page.locator("figure polyline")).not_to_have_attribute("points", first, timeout=PATIENCE * 1000)
    if house.scanned:
        page.click("nav a[href='#topology']")
        page.wait_for_selector("figure circle")
        page.get_by_role("button", name="Δ graph").last.click()
        page.wait_for_selector("button[aria-pressed=true] >> nth=0")


def test_figures_stream_and_keys_are_enough(open_page, house):
    from playwright.sync_api import expect

    page = open_page()
    generated = page.locator(".tile", has_text="generated").locator("dd")
    before = generated.inner_text()
    body = {"model": "random", "messages": [{"role": "user", "content": "again"}], "max_tokens": 8}
    httpx.post(f"{house.url}/v1/chat/completions", json=body, timeout=PATIENCE).raise_for_status()
    expect(generated).not_to_have_text(before, timeout=PATIENCE * 1000)
    page.keyboard.press("2")
    page.wait_for_selector("main[data-page=rollout]")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "A"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_it_fits(open_page, tmp_path, size, scheme):
    page = open_page(size, scheme)
    for name in PAGES:
        page.goto(f"{page.url.partition('#')[0]}#{name}")
        page.wait_for_selector(f"main[data-page={name}]")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        if (size, scheme) != ("desk", "light"):
            shoot(page, f"{name}-{size}-{scheme}", tmp_path)
