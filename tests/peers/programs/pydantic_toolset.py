"""Pydantic AI's tools of an MCP server (`MCPToolset`); prints what it saw as one JSON object.

No model is asked: the tools are called as an agent calls them.
"""

# Runs in a venv of its own.
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from fastmcp.client.transports import StdioTransport
from pydantic_ai.exceptions import ModelRetry
from pydantic_ai.mcp import MCPToolset

seen: dict[str, Any] = {}


async def agree(message: str, response_type: Any, _params: Any, _context: Any) -> Any:
    seen["asked"] = message
    return response_type(confirm=True)


async def call(server: MCPToolset, name: str, **arguments: Any) -> Any:
    try:
        return await server.direct_call_tool(name, arguments)
    except ModelRetry as error:  # what the model is to read
        return str(error)


async def converse(server: MCPToolset) -> None:
    seen["revision"] = server.client.protocol_version
    seen["lists"] = {"counting", "refusing"} <= {tool.name for tool in await server.list_tools()}
    seen["ran as a task"] = (await call(server, "whereabouts"))["job"] is not None
    seen["tool"] = await call(server, "counting", steps=3)
    seen["tool error"] = await call(server, "refusing")
    seen["required"] = await call(server, "failing_job")
    seen["answered"] = await call(server, "confirm_delete", filename="a.txt")


async def main(target: list[str]) -> None:
    server: Any = target[0]
    if not server.startswith("http"):
        server = StdioTransport(command=target[0], args=target[1:], env=dict(os.environ))
    # It waits five seconds for a server by default; one on stdio may start for longer on a busy machine.
    async with MCPToolset(server, elicitation_handler=agree, init_timeout=120) as toolset:
        await converse(toolset)
    print(json.dumps(seen))  # noqa: T201 - its result


asyncio.run(main(sys.argv[1:]))
