"""The floor: a bare ``MCPServer`` of the SDK, without tasks. Nothing on this SDK can answer faster."""

from __future__ import annotations

from mcp.server import MCPServer

from bench.apps.tools import TOOLS

server = MCPServer("bench-floor")
for tool in TOOLS:
    server.add_tool(tool)
