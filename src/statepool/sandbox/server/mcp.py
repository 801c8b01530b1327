"""A sandbox as tools of the Model Context Protocol: code, shell, files, and moments to go back to."""

from __future__ import annotations

import base64

from mcp.server import MCPServer
from mcp_types import ImageContent, TextContent

from statepool.sandbox.sandbox import Sandbox, Snapshot

__all__ = ["build"]

_INSTRUCTIONS = (
    "One sandbox: names, files and packages stay from call to call. snapshot keeps a moment, rollback goes back to it."
)


def build(sandbox: Sandbox) -> MCPServer:
    """The tools of one sandbox."""
    server = MCPServer("statepool-sandbox", instructions=_INSTRUCTIONS)
    moments: dict[str, Snapshot] = {}

    @server.tool()
    def run_code(code: str, timeout: float = 60.0) -> list[TextContent | ImageContent]:
        """Run Python; names stay. Shows what was printed, the last expression, figures, and the error if there is
        one.
        """
        done = sandbox.run_code(code, timeout=timeout)
        texts = [done.logs.stdout, done.logs.stderr, *(result.text or "" for result in done.results)]
        texts.append(done.error.traceback or f"{done.error.name}: {done.error.value}" if done.error else "")
        found: list[TextContent | ImageContent] = [
            TextContent(type="text", text="\n".join(text for text in texts if text) or "(nothing)")
        ]
        found += [
            ImageContent(type="image", data=result.forms["png"], mime_type="image/png")
            for result in done.results
            if "png" in result.forms
        ]
        return found

    @server.tool()
    def shell(command: str, timeout: float = 60.0) -> str:
        """Run a line of bash."""
        done = sandbox.commands.run(command, timeout=timeout)
        note = f"\n[exit code {done.exit_code}]" if done.exit_code else ""
        return done.stdout + done.stderr + note

    @server.tool()
    def read_file(path: str) -> str:
        """The text of a file; what is no text comes as base64 behind the word base64:."""
        data = sandbox.files.read(path, most=1 << 20)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "base64:" + base64.b64encode(data).decode()

    @server.tool()
    def write_file(path: str, text: str) -> str:
        """Write a file, and the folders above it."""
        return sandbox.files.write(path, text).path

    @server.tool()
    def list_files(path: str = "/home/user", depth: int = 1) -> str:
        """Names below a folder."""
        return "\n".join(entry.path + ("/" if entry.kind == "dir" else "") for entry in sandbox.files.list(path, depth))

    @server.tool()
    def snapshot(name: str) -> str:
        """Keep this moment, memory and files, under a name."""
        old = moments.pop(name, None)
        moments[name] = sandbox.snapshot()
        if old is not None:
            old.close()
        return f"kept as {name}"

    @server.tool()
    def rollback(name: str) -> str:
        """Go back to a moment that was kept."""
        if name not in moments:
            return f"there is no moment {name!r}; kept are {', '.join(moments) or 'none'}"
        sandbox.rollback(moments[name])
        return f"back at {name}"

    return server
