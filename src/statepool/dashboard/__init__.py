"""Pages that show what every room does at this moment, and the endpoints they read. Mounted on the server."""

from __future__ import annotations

from pathlib import Path

from statepool.dashboard.app import mounted
from statepool.dashboard.sources import Sources

__all__ = ["CHAT", "Sources", "mounted"]

CHAT = Path(__file__).parent / "chat"
"""Folder of the chat page."""
