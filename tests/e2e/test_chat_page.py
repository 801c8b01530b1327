"""The chat page in a real browser."""

import json
import re
import signal
import subprocess
import sys

import pytest
from tests.e2e.conftest import PATIENCE, SIZES, pages

pytestmark = pytest.mark.e2e


@pytest.fixture
def open_page(browser, server):
    """A function that opens the page."""
    with pages(browser, server.url) as open_one:
        yield lambda size="desk", scheme="light": open_one("", ".dot.ready", size, scheme)


def say(page, text):
    page.fill("#prompt", text)
    page.keyboard.press("Enter")


def wait_for_text(page, turn):
    """Until the first character of an answer is there."""
    from playwright.sync_api import expect

    expect(page.locator(".assistant .body").nth(turn)).not_to_be_empty(timeout=PATIENCE * 1000)


def endless(page):
    """Let no answer end by itself: the random model might choose its end token at once."""

    def without_end(route):
        body = {**json.loads(route.request.post_data), "ignore_eos": True}
        route.continue_(post_data=json.dumps(body))

    page.route("**/v1/chat/completions", without_end)


def limit(page, tokens):
    page.click("#open-settings")
    page.fill("#max-tokens", str(tokens))
    page.click("dialog .primary")


def test_an_answer_streams_and_is_kept(open_page):
    page = open_page()
    limit(page, 30)
    say(page, "hello")
    wait_for_text(page, 0)
    facts = page.wait_for_selector(".assistant:not(.live) .facts")
    for word in ("first token", "tokens/s", "tokens", "cached"):
        assert word in facts.inner_text()
    answer = page.text_content(".assistant .body")
    page.reload()
    page.wait_for_selector(".assistant .facts")
    assert page.text_content(".assistant .body") == answer
    assert page.text_content(".user .body") == "hello"
    page.click("#new-chat")
    assert page.is_visible("#welcome")
    page.click("#conversations .title")
    assert page.text_content(".assistant .body") == answer


def test_stop_frees_the_blocks(open_page, server):
    page = open_page()
    endless(page)
    say(page, "hello")
    wait_for_text(page, 0)
    assert server.metric("requests_running") == 1
    page.click("#stop")
    page.wait_for_selector(".assistant:not(.live)")
    server.wait_until(server.all_free)
    assert page.is_visible("#send")
    page.get_by_role("button", name="New chat").click()  # noise of a slow stop may not fit the context a second time
    say(page, "again")
    wait_for_text(page, 0)
    page.keyboard.press("Escape")
    page.wait_for_selector(".assistant:not(.live):last-child")


def test_keyboard_alone_is_enough(open_page):
    page = open_page()
    limit(page, 5)
    page.focus("#prompt")
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    page.wait_for_selector(".assistant:not(.live) .facts")
    assert page.text_content(".user .body") == "one\ntwo"
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement !== document.getElementById('prompt')")


def test_an_answer_shows_what_its_attention_read(browser, random_model, tmp_path):
    """The kind, the share of the clusters and a bar per token, as the engine's own trace has them."""
    trace = tmp_path / "trace.jsonl"
    wave = "wave:shortest=0,update_segment=32,segment=64,tokens_per_cluster=4,local=8"
    command = [sys.executable, "-m", "statepool.cli", "serve", random_model, "--port", "0", "--threads", "1"]
    command += ["--kv-bytes", "16MiB", "--attention", wave, "--trace-selection", trace]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = next(found[1] for line in process.stdout if (found := re.search(r"API\s+(http://\S+)/v1", line)))
            with pages(browser, url) as open_one:
                page = open_one("", ".dot.ready")
                endless(page)
                limit(page, 12)
                say(page, "a question of many words, " * 20)
                page.wait_for_selector(".assistant:not(.live) .read i", state="attached")
                facts, bars = page.inner_text(".facts"), page.locator(".read i").count()
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
    shares = {}
    for line in map(json.loads, trace.read_text().splitlines()):
        read, clusters = shares.setdefault(line["position"], [0, 0])
        shares[line["position"]] = [read + sum(map(len, line["read"])), clusters + len(line["read"]) * line["clusters"]]
    mean = sum(read / clusters for read, clusters in shares.values()) / len(shares)
    assert bars == len(shares) > 1
    assert "attention wave" in facts
    assert f"clusters read {100 * mean:.1f} %" in facts


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_it_fits(open_page, tmp_path, size, scheme):
    page = open_page(size, scheme)
    limit(page, 20)
    say(page, "a question that is long enough to need more than one line on a small screen, " * 2)
    page.wait_for_selector(".assistant:not(.live) .facts")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    box = page.locator("#composer").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= SIZES[size][0]
    page.screenshot(path=tmp_path / "page.png")
    if size == "phone":
        page.click("#open-history")
        page.click("#conversations .title")
        assert page.is_visible("#prompt")
