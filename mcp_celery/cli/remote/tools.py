"""``mcp-celery tools``: what an MCP server offers, and which of it runs as a task."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final, cast

import click
import mcp_types as types
from mcp.client import Client
from rich.console import Console
from rich.table import Table

from mcp_celery.cli.arguments import call_command, example_pairs
from mcp_celery.cli.headers import Headers
from mcp_celery.cli.output import typed
from mcp_celery.cli.remote.attend import Attendant, run
from mcp_celery.cli.remote.connection import Remote
from mcp_celery.cli.remote.outcome import Outcome
from mcp_celery.cli.remote.render import print_line, printable
from mcp_celery.common.escaping import escaped

MOST_PAGES: Final = 100
"""The most pages of a server's list of tools that are read, so that a list without an end ends."""


async def each_tool(client: Client) -> AsyncGenerator[types.Tool]:
    """The tools of a server, page by page."""
    cursor: str | None = None
    for _ in range(MOST_PAGES):
        page = await client.list_tools(cursor=cursor)
        for tool in page.tools:
            yield tool
        cursor = page.next_cursor
        if cursor is None:
            return


def tools(url: str, headers: Headers, machine: bool) -> None:
    """Print the tools of a server, and end the process with the outcome.

    Args:
        url: The server's endpoint.
        headers: Sent with each request.
        machine: Whether standard output is JSON: one tool a line.
    """

    async def body(attendant: Attendant) -> Outcome:
        # Servers say at 2025-11-25 which tools run as tasks; at 2026-07-28 they decide for each call.
        async with attendant.remote.client(mode="legacy") as client:
            found = [tool async for tool in each_tool(client)]
        if machine:
            for tool in found:
                dumped = tool.model_dump(by_alias=True, mode="json", exclude_none=True)
                click.echo(escaped(json.dumps(dumped, ensure_ascii=False)))
        else:
            print_tools(Console(), attendant.remote, found)
        return Outcome.COMPLETED

    run(Remote(url=url, headers=headers, machine=machine), body)


def print_tools(console: Console, remote: Remote, found: list[types.Tool]) -> None:
    """Print tools as a table: name, whether it runs as a task, arguments, first line of the description.

    Args:
        console: Where to print it.
        remote: The server.
        found: Its tools.
    """
    if not found:
        print_line(console, "The server has no tools.")
        return
    table = Table("tool", "task", "arguments", "description")
    for tool in found:
        first, _, _ = (tool.description or "").strip().partition("\n")
        cells = (tool.name, task_support(tool), ", ".join(arguments_of(tool.input_schema)), first)
        table.add_row(*(printable(cell) for cell in cells))
    console.print(table, markup=False, highlight=False)
    command = call_command(
        remote.url,
        found[0].name,
        example_pairs(found[0].input_schema),
        program=typed("mcp-celery"),
        options=remote.headers.options,
    )
    print_line(console, printable(f"Call one: {command}"))


def task_support(tool: types.Tool) -> str:
    """Whether a tool runs as a task: ``yes``, ``only`` or ``no``."""
    support = None if tool.execution is None else tool.execution.task_support
    return {"optional": "yes", "required": "only"}.get(support or "forbidden", "no")


def arguments_of(schema: Mapping[str, Any]) -> list[str]:
    """The arguments of a tool, each with its type.

    >>> arguments_of({"properties": {"n": {"type": "integer"}, "label": {"type": "string"}}, "required": ["n"]})
    ['n: integer', 'label: string (optional)']

    Args:
        schema: The tool's input schema.
    """
    properties = cast("Mapping[str, Any]", schema.get("properties") or {})
    required = frozenset(cast("list[str]", schema.get("required") or []))
    return [f"{name}: {type_of(one)}{'' if name in required else ' (optional)'}" for name, one in properties.items()]


def type_of(schema: Any) -> str:
    """The type that a schema describes, in words.

    >>> type_of({"anyOf": [{"type": "integer"}, {"type": "null"}]}), type_of({"enum": ["a", "b"]})
    ('integer or null', '"a" or "b"')
    """
    if not isinstance(schema, Mapping):
        return "anything"
    fields = cast("Mapping[str, Any]", schema)
    choices = fields.get("anyOf") or fields.get("oneOf")
    if isinstance(choices, list):
        return " or ".join(type_of(one) for one in cast("list[Any]", choices))
    if isinstance(values := fields.get("enum"), list):
        return " or ".join(json.dumps(value, ensure_ascii=False) for value in cast("list[Any]", values))
    kind = fields.get("type")
    if kind == "array":
        return f"list of {type_of(fields.get('items'))}"
    return " or ".join(cast("list[str]", kind)) if isinstance(kind, list) else str(kind or "anything")
