"""Large results of tasks in a client made with the MCP Python SDK 1.30; prints what arrived as one JSON object.

Its arguments: a JSON list of the results' sizes in bytes, and the server.
"""

# Runs in a venv of its own, with another version of the SDK than this project's.
# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

import mcp.types as t
from mcp import ClientSession
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamablehttp_client


async def ask(read: Any, write: Any, sizes: list[int]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    ended = asyncio.Semaphore(0)

    async def hear(message: Any) -> None:
        notification = getattr(message, "root", None)
        if isinstance(notification, t.TaskStatusNotification) and notification.params.status == "completed":
            ended.release()

    async with ClientSession(read, write, message_handler=hear) as session:
        seen["revision"] = (await session.initialize()).protocolVersion
        tasks = session.experimental
        for size in sizes:
            created = await tasks.call_tool_as_task("large", {"result_bytes": size})
            result = await tasks.get_task_result(created.task.taskId, t.CallToolResult)
            seen[str(size)] = [len(result.content[0].text), len(result.structuredContent["result"])]
            # This client breaks when something comes while it leaves: the end is to be heard before.
            await asyncio.wait_for(ended.acquire(), 30)
    return seen


async def main(sizes: list[int], target: list[str]) -> None:
    if target[0].startswith("http"):
        async with streamablehttp_client(target[0]) as (read, write, _session_id):
            seen = await ask(read, write, sizes)
    else:
        server = StdioServerParameters(command=target[0], args=target[1:], env=dict(os.environ))
        async with stdio_client(server) as (read, write):
            seen = await ask(read, write, sizes)
    print(json.dumps(seen))  # noqa: T201 - its result


asyncio.run(main(json.loads(sys.argv[1]), sys.argv[2:]))
