"""The desktop clients that are known: where each keeps its MCP servers, and the form of an entry.

The forms and places are those that the clients' own documentation gave on 2026-11-29; docs/desktop-clients.md names the
pages.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

Entry = Mapping[str, object]

LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
BRIDGE: Final = "mcp-remote"
"""A program of Node's package registry that connects a client of stdio to a server of HTTP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How a client starts a server that speaks stdio.

    Args:
        command: The program, as an absolute path: clients have a search path of their own.
        args: Its arguments.
        env: Variables set on top of those that the client passes on.
    """

    command: str
    args: tuple[str, ...]
    env: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class DesktopClient:
    """One client.

    Args:
        name: What ``--client`` calls it.
        title: Its maker's name of it.
        file: Where it keeps its servers: of the current folder's project, or of the user.
        section: The object of the file that holds an entry for each server.
        says_type: Whether an entry says its transport as ``type``.
        takes_urls: Whether an entry may be a URL; if not, a bridge is started that connects to it.
        afterwards: What to do once the entry is in the file.
    """

    name: str
    title: str
    file: Callable[[], Path]
    section: str
    says_type: bool
    takes_urls: bool
    afterwards: str

    def stdio(self, launch: Launch) -> Entry:
        """The entry of a server that the client starts."""
        kind = {"type": "stdio"} if self.says_type else {}
        env = {"env": dict(launch.env)} if launch.env else {}
        return {**kind, "command": launch.command, "args": list(launch.args), **env}

    def http(self, url: str) -> Entry:
        """The entry of a server that runs already."""
        if not self.takes_urls:
            parts = urlsplit(url)
            plain = ["--allow-http"] if parts.scheme == "http" and parts.hostname not in LOOPBACK else []
            return {"command": "npx", "args": ["-y", BRIDGE, url, *plain]}
        kind = {"type": "http"} if self.says_type else {}
        return {**kind, "url": url}


def _claude_desktop_file() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "Claude" / "claude_desktop_config.json"
    config = os.environ.get("XDG_CONFIG_HOME")
    return (Path(config) if config else Path.home() / ".config") / "Claude" / "claude_desktop_config.json"


KNOWN: Final = {
    client.name: client
    for client in (
        DesktopClient(
            name="claude-desktop",
            title="Claude Desktop",
            file=_claude_desktop_file,
            section="mcpServers",
            says_type=False,
            takes_urls=False,
            afterwards="Quit Claude Desktop and start it again.",
        ),
        DesktopClient(
            name="claude-code",
            title="Claude Code",
            file=lambda: Path.cwd() / ".mcp.json",
            section="mcpServers",
            says_type=True,
            takes_urls=True,
            afterwards="Start `claude` in this folder and approve the server.",
        ),
        DesktopClient(
            name="cursor",
            title="Cursor",
            file=lambda: Path.cwd() / ".cursor" / "mcp.json",
            section="mcpServers",
            says_type=False,
            takes_urls=True,
            afterwards="Open this folder in Cursor and turn the server on in its settings.",
        ),
        DesktopClient(
            name="vscode",
            title="VS Code",
            file=lambda: Path.cwd() / ".vscode" / "mcp.json",
            section="servers",
            says_type=True,
            takes_urls=True,
            afterwards="Open this folder in VS Code and start the server above its entry in the file.",
        ),
    )
}
