"""Stands between playwright and Chromium: commands that would lead a page to the machine do not get through.

Chromium itself keeps pages away from ``file:`` and ``chrome:``, but obeys whoever speaks its DevTools protocol, and
playwright's routes do not see pages of the browser's own. A port for DevTools would be open to every page on this
machine's loopback, so Chromium gets a pipe, and this program holds the other end. It is a program of its own, run by
its path: when playwright's driver ends, however it does, it ends the browser.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from typing import Any

__all__ = ["main", "refusal", "refused"]

_FETCHING = ("Page.navigate", "Target.createTarget", "Fetch.continueRequest", "Network.loadNetworkResource")
_SCHEMES = ("http", "https", "data", "blob")
_BLANK = ("about:blank", "about:srcdoc")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):", re.IGNORECASE)
_UID = 65534
_COMMANDS, _ANSWERS = 3, 4
"""Descriptors that Chromium reads commands from and writes answers to; a message ends with a zero byte."""


def refused(url: str) -> bool:
    """Whether an address is one of the machine or the browser, such as ``file:``, ``chrome:`` or ``view-source:``."""
    # As browsers read addresses: outer blanks and controls do not count, nor do tabs and line ends anywhere.
    plain = re.sub(r"[\t\r\n]", "", url).strip("".join(map(chr, range(33))))
    found = _SCHEME.match(plain)
    if found is None or found[1].lower() in _SCHEMES:
        return found is None and plain != ""
    return re.split(r"[#?]", plain.lower())[0] not in _BLANK


def refusal(message: dict[str, Any]) -> str | None:
    """Why a command of the DevTools protocol does not get through; None: it does."""
    method, given = message.get("method"), message.get("params") or {}
    if method in _FETCHING and "url" in given and refused(str(given["url"])):
        return f"{method}: {str(given['url'])[:200]!r} is not for agents"
    if method in ("Browser.setDownloadBehavior", "Page.setDownloadBehavior") and given.get("behavior") != "deny":
        return f"{method}: downloads would be files of the machine"
    if method == "DOM.setFileInputFiles" and given.get("files"):
        return f"{method}: give contents, not paths of the machine"
    return None


def main(executable: str, *flags: str) -> None:
    """Run Chromium, as an ordinary user, between the descriptors 3 and 4 of this process and its own."""
    commands, answers = os.dup(_COMMANDS), os.dup(_ANSWERS)
    (theirs, to_browser), (from_browser, theirs_out) = os.pipe(), os.pipe()
    os.dup2(theirs, _COMMANDS, inheritable=True)
    os.dup2(theirs_out, _ANSWERS, inheritable=True)
    root = os.geteuid() == 0  # as an ordinary user Chromium's own sandbox works; as root it would be switched off
    subprocess.Popen(  # ends with this process group
        [executable, *flags],
        pass_fds=(_COMMANDS, _ANSWERS),
        user=_UID if root else None,
        group=_UID if root else None,
        extra_groups=[] if root else None,
    )
    for fd in (_COMMANDS, _ANSWERS, theirs, theirs_out):
        os.close(fd)
    lock = threading.Lock()
    threading.Thread(target=_carry, args=(from_browser, answers, lock), daemon=True).start()
    _filter(commands, to_browser, answers, lock)
    os.killpg(0, signal.SIGKILL)  # this process, too


def _carry(source: int, target: int, lock: threading.Lock) -> None:
    """Answers, whole messages at a time, so that a refusal comes between two."""
    rest = b""
    while data := os.read(source, 1 << 20):
        whole, end, tail = data.rpartition(b"\0")
        if end:
            with lock:
                _write(target, rest + whole + end)
        rest = tail if end else rest + data
    os.killpg(0, signal.SIGKILL)


def _filter(source: int, target: int, back: int, lock: threading.Lock) -> None:
    rest = b""
    while data := os.read(source, 1 << 20):
        *messages, rest = (rest + data).split(b"\0")
        for text in messages:
            message = json.loads(text)
            reason = refusal(message)
            if reason is None:
                _write(target, text + b"\0")
                continue
            answer = {key: message[key] for key in ("id", "sessionId") if key in message}
            answer["error"] = {"code": -32000, "message": reason}
            with lock:
                _write(back, json.dumps(answer).encode() + b"\0")


def _write(target: int, data: bytes) -> None:
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(target, view) :]
    except BrokenPipeError:
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
