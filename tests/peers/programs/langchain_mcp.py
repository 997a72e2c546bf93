"""LangChain's tools of an MCP server (`langchain-mcp-adapters`); prints what it saw as one JSON object.

No model is asked: the tools are called as an agent calls them.
"""

# Runs in a venv of its own, with another version of the SDK than this project's.
# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false, reportArgumentType=false

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from langchain_mcp_adapters.callbacks import Callbacks
from langchain_mcp_adapters.client import MultiServerMCPClient
from mcp.shared.exceptions import McpError
from mcp.types import ElicitResult

seen: dict[str, Any] = {"progress": []}


async def note(progress: float, total: float | None, _message: str | None, _context: Any) -> None:
    seen["progress"].append([progress, total])


async def agree(_mcp_context: Any, params: Any, _context: Any) -> ElicitResult:
    seen["asked"] = params.message
    return ElicitResult(action="accept", content={"confirm": True})


async def converse(tools: dict[str, Any]) -> None:
    async def call(name: str, **arguments: Any) -> Any:
        return await tools[name].ainvoke({"type": "tool_call", "id": name, "name": name, "args": arguments})

    seen["lists"] = {"counting", "refusing"} <= tools.keys()
    where = (await call("whereabouts")).artifact["structured_content"]
    seen["ran as a task"] = where["job"] is not None
    seen["progress"] = []
    seen["tool"] = (await call("counting", steps=3)).content[0]["text"]
    failed = await call("refusing")
    seen["tool error"] = [failed.status, failed.content[0]["text"]]
    seen["answered"] = (await call("confirm_delete", filename="a.txt")).content[0]["text"]
    try:
        await call("failing_job")
    except McpError as error:
        seen["required"] = error.error.code


async def main(target: list[str]) -> None:
    server: dict[str, Any] = {"transport": "streamable_http", "url": target[0]}
    if not target[0].startswith("http"):
        server = {"transport": "stdio", "command": target[0], "args": target[1:], "env": dict(os.environ)}
    client = MultiServerMCPClient({"peer": server}, callbacks=Callbacks(on_progress=note, on_elicitation=agree))
    await converse({tool.name: tool for tool in await client.get_tools()})
    print(json.dumps(seen))  # noqa: T201 - its result


asyncio.run(main(sys.argv[1:]))
