"""``mcp-celery demo``: a real client, a real server, a real Celery worker, and a task pushed from end to end."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import click
import httpx2
import mcp_types as types
from mcp.client import Client
from mcp.shared.exceptions import MCPError
from rich.console import Console

from mcp_celery.cli.dev import flower_command
from mcp_celery.cli.errors import RunError, StartError
from mcp_celery.cli.follow import FollowTasks, TaskEndedError
from mcp_celery.cli.output import LogTail, typed
from mcp_celery.cli.render import ProgressView, print_index, print_line
from mcp_celery.cli.stack import SERVER as SERVER_VARIABLE
from mcp_celery.cli.stack import Stack, StopRequested, run_stack
from mcp_celery.cli.store import REDIS_URL
from mcp_celery.keys import build_task_key, celery_job_id

SERVER: Final = "workers.demo:server"
SERVER_FILE: Final = Path("workers/demo.py")
TOOL: Final = "index_folder"
DELAY_MS: Final = 15
"""A checkout is indexed in a blink; with this pause after each file the bar can be watched."""
SILENCE_SECONDS: Final = 60.0
"""A worker is up within seconds, on a slow machine within some more, and then every file is pushed."""
CLIENT_ERRORS: Final = (MCPError, TaskEndedError, httpx2.HTTPError, OSError, RuntimeError, ValueError, ExceptionGroup)
"""What a client may raise where the other side is broken: errors of the protocol, the transport, or the content."""


@dataclass(frozen=True, slots=True)
class Indexed:
    """What came of the demo.

    Args:
        task_id: The id of the MCP task.
        structured: The tool's structured result.
        pushes: How many pushes told of it.
    """

    task_id: str
    structured: Any
    pushes: int

    @property
    def job_id(self) -> str:
        """The Celery id of the task's job; the demo's client is an anonymous one."""
        return celery_job_id(build_task_key(None, self.task_id, "tool", TOOL))


@click.command()
def demo() -> None:
    """Watch a tool call run as a Celery job, its progress and its result pushed to the client.

    To be run from a checkout of the project, which it indexes. It starts a server, a worker and a private store (unless
    MCP_CELERY_REDIS_URL names one), and ends them all.
    """
    if not SERVER_FILE.is_file():
        raise StartError(f"there is no {SERVER_FILE} here: run the demo in a checkout of the project")
    console = Console()
    logs = LogTail()
    with tempfile.TemporaryDirectory(prefix="mcp-celery-demo-") as folder:
        stack = Stack.prepare(SERVER, host="127.0.0.1", port=0, data_dir=Path(folder, "store"), pool="asyncio")

        async def use(_redis_url: str) -> Indexed:
            print_line(console, f"The MCP server answers at {stack.url}")
            return await _index(console, stack.url)

        # The server's module has set logging up for a server; here it would write between the bar and its text.
        logging.getLogger().setLevel(logging.WARNING)
        print_line(console, f"Starting {_list_of_parts(stack)} …")
        try:
            indexed = run_stack(stack, logs, use)
        except StopRequested:
            raise click.Abort from None
        except RunError as error:
            raise RunError(f"{error.message}\n{logs.text()}") from error
    _report(console, indexed, private_store=stack.redis_url is None)


def _list_of_parts(stack: Stack) -> str:
    store = "a private store, " if stack.redis_url is None else ""
    return f"{store}a Celery worker and an MCP server"


async def _index(console: Console, url: str) -> Indexed:
    """Index the current folder as a client of the server."""
    try:
        with ProgressView(console) as view:
            task_ids: list[str] = []
            follow = FollowTasks(task_ids.append, view.show, silence_seconds=SILENCE_SECONDS)
            async with Client(url, extensions=[follow]) as client:
                view.say(f"Calling the tool {TOOL} on {Path.cwd()}")
                result = await client.call_tool(TOOL, {"path": str(Path.cwd()), "delay_ms": DELAY_MS})
    except CLIENT_ERRORS as error:
        raise RunError(f"the call of {TOOL} failed: {_first_of(error)}") from error
    if not task_ids:
        raise RunError(f"the server answered the call of {TOOL} without making a task of it")
    if result.is_error:
        raise RunError(f"{TOOL} failed: {_text_of(result)}")
    return Indexed(task_ids[0], result.structured_content, view.pushes)


def _first_of(error: Exception) -> Exception:
    """The error that says what is wrong: the client raises groups, one within the other."""
    if isinstance(error, ExceptionGroup):
        group = cast("ExceptionGroup[Exception]", error)
        return _first_of(group.exceptions[0])
    return error


def _text_of(result: types.CallToolResult) -> str:
    return " ".join(block.text for block in result.content if isinstance(block, types.TextContent))


def _report(console: Console, indexed: Indexed, *, private_store: bool) -> None:
    try:
        print_index(console, indexed.structured)
    except ValueError as error:
        raise RunError(f"{TOOL} returned something that is no index: {error}") from error
    print_line(console, f"Task       {indexed.task_id} completed, told by {indexed.pushes} pushes and no poll")
    print_line(console, f"Celery id  {indexed.job_id}")
    print_line(console, "\nTo see such a job in Flower, start it first, each command in a terminal of its own:")
    ourselves = typed("mcp-celery")
    if private_store:
        print_line(console, f"  {ourselves} store")
        print_line(console, f"  export {REDIS_URL}=…    # the line that the store prints, here and below")
    print_line(console, f"  {flower_command({SERVER_VARIABLE: SERVER})}")
    print_line(console, f"  {ourselves} demo")
    print_line(console, "and open http://localhost:5555/tasks")
