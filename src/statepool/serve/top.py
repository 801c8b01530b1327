"""``statepool top``: a live view of a server's engines and its KV pool."""

from __future__ import annotations

import time
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table

from statepool.web import get_json

__all__ = ["picture", "watch"]


def picture(now: dict[str, Any], before: dict[str, Any] | None, seconds: float) -> RenderableType:
    """Two tables: engines with their load and rates since ``before``, and pool nodes."""
    rates = {each["number"]: each["generated_tokens"] for each in before["engines"]} if before else {}
    engines = _table("engines (queued and held: tokens)")
    # Ten columns in the eighty of a terminal.
    for name in ("engine", "role", "pid", "run", "wait", "queued", "held", "KV", "hits", "tok/s"):
        engines.add_column(name, justify="left" if name == "role" else "right")
    for each in now["engines"]:
        used = 1 - each["kv_blocks_free"] / max(each["kv_blocks_total"], 1)
        asked, hit = each["prefix_query_tokens"], each["prefix_hit_tokens"]
        rate = (each["generated_tokens"] - rates.get(each["number"], each["generated_tokens"])) / max(seconds, 1e-9)
        engines.add_row(
            f"{each['number']}{'' if each['usable'] else ' (away)'}",
            each["role"],
            "" if each["pid"] is None else str(each["pid"]),
            *(str(each[name]) for name in ("running", "waiting", "queued_tokens", "held_tokens")),
            f"{used:.0%}",
            f"{hit / asked:.0%}" if asked else "",
            f"{max(rate, 0):.0f}",
        )
    nodes = _table("KV pool")
    for name in ("node", "blocks", "of", "MiB", "on disk", "hits", "evicted"):
        nodes.add_column(name, justify="left" if name == "node" else "right", overflow="fold")
    for node in now["nodes"]:
        if not node["answers"]:
            nodes.add_row(node["address"], "away")
            continue
        asked = node["hits"] + node["misses"]
        nodes.add_row(
            node["address"],
            str(node["blocks"]),
            str(node["slots"]),
            f"{node['blocks'] * node['slot_bytes'] / (1 << 20):.0f}",
            str(node["on_disk"]),
            f"{node['hits'] / asked:.0%}" if asked else "",
            str(node["evicted"]),
        )
    return Group(engines, nodes) if now["nodes"] else engines


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0)


def watch(url: str, api_key: str | None, seconds: float, once: bool) -> None:
    """Show the picture, again every ``seconds`` until Ctrl-C; ``once`` shows it once."""
    now = get_json(url, "/cluster", api_key)
    with Live(picture(now, None, seconds), auto_refresh=False, screen=not once) as live:
        while not once:
            time.sleep(seconds)
            before, now = now, get_json(url, "/cluster", api_key)
            live.update(picture(now, before, seconds), refresh=True)
