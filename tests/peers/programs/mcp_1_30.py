"""A client made with the MCP Python SDK 1.30 (`session.experimental`); prints what it saw as one JSON object."""

# Runs in a venv of its own, with another version of the SDK than this project's.
# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportArgumentType=false, reportOptionalMemberAccess=false

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import defaultdict
from typing import Any

import mcp.types as t
from mcp import ClientSession
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamablehttp_client
from mcp.shared.exceptions import McpError

seen: dict[str, Any] = {}
statuses: list[tuple[str, str]] = []
ends: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)


async def hear(message: Any) -> None:
    if isinstance(message, t.ServerNotification) and isinstance(message.root, t.TaskStatusNotification):
        statuses.append((message.root.params.taskId, message.root.params.status))
        if message.root.params.status in ("completed", "failed", "cancelled"):
            ends[message.root.params.taskId].set()
    elif isinstance(message, Exception):
        seen.setdefault("problems", []).append(repr(message))


async def agree(context: Any, params: Any) -> t.ElicitResult:
    seen["asked"] = [params.message, context.meta is not None]
    return t.ElicitResult(action="accept", content={"confirm": True})


async def code_of(answer: Any) -> int | None:
    try:
        await answer
    except McpError as error:
        return error.error.code
    return None


async def converse(read: Any, write: Any) -> None:
    async with ClientSession(read, write, message_handler=hear, elicitation_callback=agree) as session:
        hello = await session.initialize()
        seen["revision"] = hello.protocolVersion
        seen["capability"] = hello.capabilities.tasks.model_dump(exclude_none=True)
        tools = (await session.list_tools()).tools
        seen["support"] = {one.name: one.execution.taskSupport for one in tools if one.execution}
        await follow_a_task(session)
        await end_badly(session)
        await ask_for_more(session)
        await be_asked(session)
        # This client breaks when something comes while it leaves: every end is to be heard before.
        for task in (await session.experimental.list_tasks()).tasks:
            await asyncio.wait_for(ends[task.taskId].wait(), 30)


async def follow_a_task(session: ClientSession) -> None:
    tasks = session.experimental
    created = await tasks.call_tool_as_task("counting", {"steps": 3}, ttl=30_000)
    seen["created"] = [created.task.status, created.task.ttl]
    task_id = created.task.taskId
    result = await tasks.get_task_result(task_id, t.CallToolResult)
    seen["result"] = [result.content[0].text, result.meta["io.modelcontextprotocol/related-task"]["taskId"] == task_id]
    seen["got"] = (await tasks.get_task(task_id)).status
    seen["listed"] = task_id in [one.taskId for one in (await tasks.list_tasks()).tasks]
    await asyncio.wait_for(ends[task_id].wait(), 30)
    seen["pushed"] = [status for told, status in statuses if told == task_id][-2:]
    polled = await tasks.call_tool_as_task("slow_compute", {"seconds": 0.2})
    seen["polled"] = [one.status async for one in tasks.poll_task(polled.task.taskId)][-1]


async def end_badly(session: ClientSession) -> None:
    tasks = session.experimental
    task_id = (await tasks.call_tool_as_task("counting", {"steps": 500, "pause": 0.05})).task.taskId
    seen["cancelled"] = (await tasks.cancel_task(task_id)).status
    seen["result of the cancelled"] = await code_of(tasks.get_task_result(task_id, t.CallToolResult))
    seen["cancelled again"] = await code_of(tasks.cancel_task(task_id))
    seen["forbidden"] = await code_of(tasks.call_tool_as_task("greet", {"name": "Ada"}))
    seen["required"] = await code_of(session.call_tool("failing_job", {}))
    seen["unknown"] = await code_of(tasks.get_task("nobody-made-this"))
    refused = (await tasks.call_tool_as_task("refusing", {})).task.taskId
    seen["tool error"] = (await tasks.get_task_result(refused, t.CallToolResult)).isError
    seen["status of the tool error"] = (await tasks.get_task(refused)).status
    broken = (await tasks.call_tool_as_task("protocol_error_job", {})).task.taskId
    seen["protocol error"] = await code_of(tasks.get_task_result(broken, t.CallToolResult))


async def ask_for_more(session: ClientSession) -> None:
    seen["in the foreground"] = (await session.call_tool("slow_compute", {"seconds": 0})).content[0].text
    for request, result_type in (
        (
            t.GetPromptRequest(
                params=t.GetPromptRequestParams(
                    name="briefing", arguments={"topic": "tides"}, task=t.TaskMetadata(ttl=30_000)
                )
            ),
            t.GetPromptResult,
        ),
        (
            t.ReadResourceRequest(
                params=t.ReadResourceRequestParams(uri="fixture://report", task=t.TaskMetadata(ttl=30_000))
            ),
            t.ReadResourceResult,
        ),
    ):
        created = await session.send_request(t.ClientRequest(request), t.CreateTaskResult)
        result = await session.experimental.get_task_result(created.task.taskId, result_type)
        seen[request.method] = (
            result.messages[0].content.text if request.method == "prompts/get" else result.contents[0].text
        )


async def be_asked(session: ClientSession) -> None:
    tasks = session.experimental
    asking = (await tasks.call_tool_as_task("confirm_delete", {"filename": "a.txt"})).task.taskId
    async for status in tasks.poll_task(asking):
        if status.status == "input_required":
            break
    seen["while it asks"] = status.status
    seen["answered"] = (await tasks.get_task_result(asking, t.CallToolResult)).content[0].text


async def main(target: list[str]) -> None:
    if target[0].startswith("http"):
        async with streamablehttp_client(target[0]) as (read, write, _session_id):
            await converse(read, write)
    else:
        server = StdioServerParameters(command=target[0], args=target[1:], env=dict(os.environ))
        async with stdio_client(server) as (read, write):
            await converse(read, write)
    print(json.dumps(seen))  # noqa: T201 - its result


asyncio.run(main(sys.argv[1:]))
