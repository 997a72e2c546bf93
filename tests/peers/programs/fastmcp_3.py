"""A client made with FastMCP 3.4; prints what it saw as one JSON object."""

# Runs in a venv of its own. pyright leaves it out: it is for another FastMCP than the one that is installed here.

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from fastmcp import Client
from fastmcp.client.transports import StdioTransport
from fastmcp.exceptions import ToolError
from mcp.shared.exceptions import McpError

seen: dict[str, Any] = {}


async def agree(message: str, response_type: Any, _params: Any, _context: Any) -> Any:
    seen["asked"] = message
    return response_type(confirm=True)


async def converse(client: Client) -> None:
    statuses: list[str] = []
    task = await client.call_tool("counting", {"steps": 3}, task=True)
    task.on_status_change(lambda status: statuses.append(status.status))
    seen["ran as a task"] = not task.returned_immediately
    seen["tool"] = (await task).content[0].text
    seen["pushed"] = statuses[-1:]
    seen["status"] = (await task.status()).status
    seen["awaited again"] = (await task.result()).content[0].text

    prompt = await client.get_prompt("briefing", {"topic": "tides"}, task=True)
    seen["prompt"] = (await prompt).messages[0].content.text
    resource = await client.read_resource("fixture://report", task=True)
    seen["resource"] = (await resource)[0].text
    page = await client.read_resource("fixture://pages/7", task=True)
    seen["template"] = (await page)[0].text
    listed = (await client.list_tasks())["tasks"]
    seen["listed"] = {task.task_id, prompt.task_id, resource.task_id, page.task_id} <= {one["taskId"] for one in listed}

    stopped = await client.call_tool("counting", {"steps": 500, "pause": 0.05}, task=True)
    await stopped.cancel()
    seen["cancelled"] = (await stopped.wait(state="cancelled", timeout=30)).status
    asking = await client.call_tool("confirm_delete", {"filename": "a.txt"}, task=True)
    seen["answered"] = (await asking).content[0].text
    failed = await client.call_tool("refusing", {}, task=True)
    try:
        await failed
    except ToolError as error:
        seen["tool error"] = str(error)
    try:
        await client.call_tool("greet", {"name": "Ada"}, task=True)
    except McpError as error:
        seen["forbidden"] = error.error.code
    try:
        await client.call_tool("failing_job", {})
    except McpError as error:
        seen["required"] = error.error.code


async def main(target: list[str]) -> None:
    server: Any = target[0]
    if not server.startswith("http"):
        server = StdioTransport(command=target[0], args=target[1:], env=dict(os.environ))
    async with Client(server, elicitation_handler=agree) as client:
        await converse(client)
    print(json.dumps(seen))  # noqa: T201 - its result


asyncio.run(main(sys.argv[1:]))
