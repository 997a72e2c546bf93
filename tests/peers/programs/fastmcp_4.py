"""A client made with FastMCP 4 and its package for tasks; prints what it saw as one JSON object."""

# Runs in a venv of its own; its package for tasks is not a dependency of this project, so its types are unknown here.
# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from fastmcp import Client
from fastmcp.client.transports import StdioTransport
from fastmcp.exceptions import ToolError
from fastmcp_tasks.client import call_tool_task

seen: dict[str, Any] = {}


async def agree(message: str, response_type: Any, _params: Any, _context: Any) -> Any:
    seen["asked"] = message
    return response_type(confirm=True)


async def reason_of(answer: Any) -> str | None:
    try:
        await answer
    except ToolError as error:
        return str(error)
    return None


async def converse(client: Client) -> None:
    seen["revision"] = client.protocol_version
    # An ordinary call declares that this client follows tasks, and follows what it becomes.
    where: Any = await client.call_tool("whereabouts")
    seen["ordinary call ran as a task"] = where.structured_content["job"] is not None

    task = await call_tool_task(client, "counting", {"steps": 3})
    seen["created"] = task.create_result.status
    seen["tool"] = (await task).content[0].text
    seen["status"] = (await task.status()).status
    stopped = await call_tool_task(client, "counting", {"steps": 500, "pause": 0.05})
    await stopped.cancel()
    seen["cancelled"] = (await stopped.wait(state="cancelled", timeout=30)).status
    asking = await call_tool_task(client, "confirm_delete", {"filename": "a.txt"})
    seen["while it asks"] = (await asking.wait(state="input_required", timeout=30)).status
    seen["answered"] = (await asking).content[0].text

    seen["tool error"] = await reason_of(client.call_tool("refusing"))
    seen["protocol error"] = await reason_of(client.call_tool("protocol_error_job"))
    seen["required"] = await reason_of(client.call_tool("failing_job"))
    seen["forbidden"] = (await reason_of(call_tool_task(client, "greet", {"name": "Ada"}))) is not None


async def main(target: list[str]) -> None:
    server: Any = target[0]
    if not server.startswith("http"):
        server = StdioTransport(command=target[0], args=target[1:], env=dict(os.environ))
    async with Client(server, elicitation_handler=agree) as client:
        await converse(client)
    print(json.dumps(seen))  # noqa: T201 - its result


asyncio.run(main(sys.argv[1:]))
