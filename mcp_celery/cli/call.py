"""``mcp-celery call``: call a tool of any MCP server from a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import click
import mcp_types as types
from mcp.client import Client

from mcp_celery.cli.arguments import JSONCommand, parsed_object, split_pairs, typed_arguments
from mcp_celery.cli.attend import Attendant, run
from mcp_celery.cli.outcome import STATUS_HELP, ClientError, Outcome, outcome_of
from mcp_celery.cli.remote import Remote, print_json, print_tool_result, remote_options
from mcp_celery.client import TaskState, call_tool_task

MOST_PAGES: Final = 100
"""Of a server's list of tools, so that a list without an end ends."""


@click.command(cls=JSONCommand, epilog=STATUS_HELP)
@remote_options
@click.argument("tool")
@click.option("--arg", "pairs", multiple=True, metavar="NAME=VALUE", help="One argument, as the tool's schema has it.")
@click.option(
    "--json",
    "objects",
    multiple=True,
    metavar="['{…}']",
    help="All arguments as JSON. By itself: print JSON, for machines.",
)
@click.option(
    "--task/--no-task", default=True, help="Let the server make a task of the call, as it likes. The default."
)
def call(
    url: str, tool: str, headers: dict[str, str], pairs: Sequence[str], objects: Sequence[str], task: bool
) -> None:
    """Call TOOL of the MCP server at URL, and print its result.

    Where the server makes a task of the call, a bar shows how it goes, and Ctrl-C offers to cancel it or to leave it
    running. Questions are asked at the prompt, or answered by the lines that are piped in. Images and other files of
    the result are saved in the current folder.
    """
    given, machine = parsed_object(objects)
    texts = split_pairs(pairs)
    if given is not None and texts:
        raise click.UsageError("--arg and --json '{…}' are two ways to say the same: use one of them")

    async def body(attendant: Attendant) -> Outcome:
        async with attendant.remote.client(elicitation=attendant.prompter.elicit, tasks=task) as client:
            arguments = given if given is not None else typed_arguments(texts, await _schema(client, tool))
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
