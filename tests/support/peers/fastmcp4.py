"""A FastMCP 4 server with tasks, for the client to be tested against. Runs in the venv that ``bench/peer.py`` makes."""

# Its package for tasks is not a dependency of this project, so its types are unknown here.
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import asyncio
import sys

import mcp_types
from fastmcp import Context, FastMCP
from fastmcp_tasks import TasksExtension
from mcp.shared.exceptions import MCPError

server = FastMCP("peer")
server.add_extension(TasksExtension())
NAME = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


@server.tool(task=True)
async def add(a: int, b: int) -> int:
    return a + b


@server.tool(task=True)
async def wait() -> str:
    await asyncio.sleep(3600)
    return "waited"


@server.tool(task=True)
async def break_down() -> str:
    raise MCPError(-32050, "the gears are stuck", {"gear": 7})


@server.tool(task=True)
async def greet(ctx: Context) -> str | mcp_types.InputRequiredResult:
    answer = (ctx.input_responses or {}).get("name")
    if not isinstance(answer, mcp_types.ElicitResult) or answer.content is None:
        asked = mcp_types.ElicitRequestFormParams(message="Your name?", requested_schema=NAME)
        return mcp_types.InputRequiredResult(input_requests={"name": mcp_types.ElicitRequest(params=asked)})
    return f"Hello, {answer.content['name']}!"


if __name__ == "__main__":
    server.run(transport="http", host="127.0.0.1", port=int(sys.argv[1]), show_banner=False)
