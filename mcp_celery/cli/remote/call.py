"""``mcp-celery call``: call a tool of any MCP server from a terminal."""

from __future__ import annotations

from typing import Any

import click
import mcp_types as types
from mcp.client import Client
from mcp.shared.exceptions import MCPError

from mcp_celery.cli.arguments import typed_arguments
from mcp_celery.cli.headers import Headers
from mcp_celery.cli.remote.argument_errors import explained, unknown_names
from mcp_celery.cli.remote.attend import Attendant, run
from mcp_celery.cli.remote.connection import Remote, print_json, print_tool_result
from mcp_celery.cli.remote.outcome import ClientError, Outcome, outcome_of
from mcp_celery.cli.remote.tools import each_tool
from mcp_celery.client import TaskHandle, TaskState, call_tool_task


def call(
    url: str,
    tool: str,
    headers: Headers,
    pairs: dict[str, str],
    given: tuple[dict[str, Any] | None, bool],
    task: bool,
    detach: bool,
    timeout: float | None,
) -> None:
    """Call a tool, and end the process with the outcome.

    Args:
        url: The server's endpoint.
        tool: The tool's name.
        headers: Sent with each request.
        pairs: Arguments as texts.
        given: All arguments, None where there are none; and whether standard output is JSON.
        task: Whether the server may make a task of the call.
        detach: Whether to print the task's id and leave the task running.
        timeout: How long to wait for the result, in seconds; None: for as long as it takes.
    """
    whole, machine = given
    if whole is not None and pairs:
        raise click.UsageError("--arg and --json '{…}' exclude each other: use one of them")
    if detach and not task:
        raise click.UsageError("--detach leaves a task running, and --no-task makes none: use one of them")

    async def body(attendant: Attendant) -> Outcome:
        async with attendant.remote.client(elicitation=attendant.prompter.elicit, tasks=task) as client:
            schema = {} if whole is not None else await _schema(client, tool)
            if pairs and (wrong := unknown_names(pairs, schema)):
                raise ClientError(wrong, Outcome.USAGE)
            arguments = whole if whole is not None else typed_arguments(pairs, schema)
            try:
                answer = await _answer(client, tool, arguments, task=task)
            except MCPError as error:
                raise await _explained(error, client, tool, arguments, schema, task=task) from error
            if isinstance(answer, types.CallToolResult):
                if answer.is_error and not machine:
                    wrong = explained(arguments, schema or await _schema(client, tool))
                    if wrong is not None:
                        raise ClientError(wrong, Outcome.FAILED)
                return _print_plain(answer, tool, machine=machine)
            if detach:
                attendant.remote.print_detached(answer.state)
                return Outcome.COMPLETED
            attendant.announce(answer)
            return await attendant.finish(answer, name=tool)

    run(Remote(url=url, headers=headers, machine=machine), body, timeout=timeout)


async def _answer(
    client: Client, tool: str, arguments: dict[str, Any], *, task: bool
) -> TaskHandle | types.CallToolResult:
    """Call a tool: the task that the server made of the call, else the result."""
    if not task:
        return await client.call_tool(tool, arguments)
    handle = await call_tool_task(client, tool, arguments)
    return handle if handle.task_id else await handle


async def _explained(
    error: MCPError, client: Client, tool: str, arguments: dict[str, Any], schema: dict[str, Any], *, task: bool
) -> Exception:
    """A server's refusal of a call, in the words of the command line where these say more."""
    if error.code == types.MISSING_REQUIRED_CLIENT_CAPABILITY and not task:
        return ClientError(f"the tool {tool!r} runs only as a task: leave out --no-task", Outcome.FAILED)
    if error.code != types.INVALID_PARAMS:
        return error
    wrong = explained(arguments, schema or await _schema(client, tool))
    return error if wrong is None else ClientError(wrong, Outcome.FAILED)


async def _schema(client: Client, tool: str) -> dict[str, Any]:
    """The tool's input schema.

    Raises:
        ClientError: The server has no such tool.
    """
    names: list[str] = []
    async for listed in each_tool(client):
        if listed.name == tool:
            return listed.input_schema
        names.append(listed.name)
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
