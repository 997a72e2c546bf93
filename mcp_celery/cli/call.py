"""``mcp-celery call``: call a tool of any MCP server from a terminal."""

from __future__ import annotations

from typing import Any, Final

import click
import mcp_types as types
from mcp.client import Client

from mcp_celery.cli.arguments import typed_arguments
from mcp_celery.cli.attend import Attendant, run
from mcp_celery.cli.headers import Headers
from mcp_celery.cli.outcome import ClientError, Outcome, outcome_of
from mcp_celery.cli.remote import Remote, print_json, print_tool_result
from mcp_celery.client import TaskState, call_tool_task

MOST_PAGES: Final = 100
"""Of a server's list of tools, so that a list without an end ends."""


def call(
    url: str,
    tool: str,
    headers: Headers,
    pairs: dict[str, str],
    given: tuple[dict[str, Any] | None, bool],
    task: bool,
) -> None:
    """Call a tool, and end the process with the outcome.

    Args:
        url: The server's endpoint.
        tool: The tool's name.
        headers: Sent with each request.
        pairs: Arguments as texts.
        given: All arguments, None where there are none; and whether standard output is JSON.
        task: Whether the server may make a task of the call.
    """
    whole, machine = given
    if whole is not None and pairs:
        raise click.UsageError("--arg and --json '{…}' are two ways to say the same: use one of them")

    async def body(attendant: Attendant) -> Outcome:
        async with attendant.remote.client(elicitation=attendant.prompter.elicit, tasks=task) as client:
            arguments = whole if whole is not None else typed_arguments(pairs, await _schema(client, tool))
            if not task:
                return _print_plain(await client.call_tool(tool, arguments), tool, machine=machine)
            handle = await call_tool_task(client, tool, arguments)
            if not handle.task_id:
                return _print_plain(await handle, tool, machine=machine)
            return await attendant.finish(handle, name=tool)

    run(Remote(url=url, headers=headers, machine=machine), body)


async def _schema(client: Client, tool: str) -> dict[str, Any]:
    """The tool's input schema.

    Raises:
        ClientError: The server has no such tool.
    """
    names: list[str] = []
    cursor: str | None = None
    for _ in range(MOST_PAGES):
        page = await client.list_tools(cursor=cursor)
        for listed in page.tools:
            if listed.name == tool:
                return listed.input_schema
            names.append(listed.name)
        cursor = page.next_cursor
        if cursor is None:
            break
    raise ClientError(f"the server has no tool {tool!r}; it has: {', '.join(names) or 'none'}", Outcome.FAILED)


def _print_plain(result: types.CallToolResult, tool: str, *, machine: bool) -> Outcome:
    state = TaskState(
        task_id=tool, status="completed", result=result.model_dump(by_alias=True, mode="json", exclude_none=True)
    )
    if machine:
        print_json(state, has_task=False)
    else:
        print_tool_result(result, name=tool)
    return outcome_of(state)
