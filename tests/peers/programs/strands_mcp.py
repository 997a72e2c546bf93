"""Strands Agents' tools of an MCP server (`MCPClient`); prints what it saw as one JSON object.

No model is asked: the tools are called as an agent calls them. Its first argument says whether it follows tasks.
"""

# Runs in a venv of its own, with another version of the SDK than this project's.
# pyright: basic, reportMissingImports=false, reportCallIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import json
import os
import sys
from typing import Any

from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.types import ElicitResult
from strands.tools.mcp import MCPClient, TasksConfig

seen: dict[str, Any] = {}


async def agree(_context: Any, params: Any) -> ElicitResult:
    seen["asked"] = params.message
    return ElicitResult(action="accept", content={"confirm": True})


def converse(client: MCPClient) -> None:
    def call(name: str, **arguments: Any) -> Any:
        return client.call_tool_sync(tool_use_id=name, name=name, arguments=arguments)

    seen["lists"] = {"counting", "refusing"} <= {tool.tool_name for tool in client.list_tools_sync()}
    seen["ran as a task"] = call("whereabouts")["structuredContent"]["job"] is not None
    for line, name, arguments in (
        ("tool", "counting", {"steps": 3}),
        ("tool error", "refusing", {}),
        ("required", "failing_job", {}),
        ("answered", "confirm_delete", {"filename": "a.txt"}),
    ):
        answer = call(name, **arguments)
        seen[line] = [answer["status"], answer["content"][0]["text"]]


def main(follows_tasks: bool, target: list[str]) -> None:
    options: dict[str, Any] = {"url": target[0]}
    if not target[0].startswith("http"):
        server = StdioServerParameters(command=target[0], args=target[1:], env=dict(os.environ))
        options = {"transport_callable": lambda: stdio_client(server)}
    tasks = TasksConfig() if follows_tasks else None
    with MCPClient(**options, startup_timeout=120, elicitation_callback=agree, tasks_config=tasks) as client:
        converse(client)
    print(json.dumps(seen))  # noqa: T201 - its result


main(sys.argv[1] == "tasks", sys.argv[2:])
