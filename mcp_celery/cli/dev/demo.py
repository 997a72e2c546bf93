"""``mcp-celery demo``: a real client, a real server, a real Celery worker, and a task pushed from end to end."""

from __future__ import annotations

import asyncio
import json
import logging
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import click
import mcp_types as types
from mcp.client import Client
from mcp.client.session import ClientRequestContext
from rich.console import Console

from mcp_celery.cli.dev.sample import SAMPLE_FILES, write_sample
from mcp_celery.cli.dev.stack import Stack, StopRequested, run_stack
from mcp_celery.cli.errors import RunError
from mcp_celery.cli.output import LogTail, typed
from mcp_celery.cli.remote.lines import Lines
from mcp_celery.cli.remote.outcome import EXPECTED, first_of
from mcp_celery.cli.remote.questions import Prompter
from mcp_celery.cli.remote.render import ProgressView, print_index, print_line
from mcp_celery.cli.remote.results import print_structured, text_of
from mcp_celery.client import TaskHandle, TasksClient, call_tool_task, resilient_http
from mcp_celery.demo.folder_index import NotIndexableError, list_files
from mcp_celery.keys import Hidden, build_task_key, celery_job_id
from mcp_celery.settings import Settings

SERVER: Final = "mcp_celery.demo.server"
TOOL: Final = "index_folder"
ASKING_TOOL: Final = "find_files"
DELAY_MS: Final = 15
"""A small folder is indexed in a blink; with this pause after each file the bar can be watched."""
LONGEST_DELAY_MS: Final = 8_000
"""Of all pauses together: a large folder needs none to be watched."""
MOST_BYTES: Final = 500_000_000
"""A larger folder would be read for minutes."""
SHOWN_URL: Final = "http://127.0.0.1:8000"
"""Where ``dev`` serves by default."""
SILENCE_SECONDS: Final = 60.0
"""A worker is up within seconds, on a slow machine within some more, and then every file is pushed."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The folder that the demo indexes.

    Args:
        folder: The current folder, or a sample.
        files: How many files it has.
        why_not_here: Why it is a sample; empty for the current folder.
    """

    folder: Path
    files: int
    why_not_here: str = ""

    @classmethod
    def choose(cls, here: Path, sample: Path) -> Subject:
        """Take a folder if it can be indexed within seconds, else write a sample.

        Args:
            here: The folder.
            sample: Where to write the sample; there is no such folder yet.
        """
        try:
            names = list_files(here)
        except NotIndexableError as error:
            why = str(error)
        else:
            if not names:
                why = "has no file"
            elif sum(_size(here / name) for name in names) > MOST_BYTES:
                why = f"holds more than {MOST_BYTES // 1_000_000} MB"
            else:
                return cls(here, len(names))
        write_sample(sample)
        return cls(sample, SAMPLE_FILES, why)

    @property
    def delay_ms(self) -> int:
        """Milliseconds to pause after each file."""
        return min(DELAY_MS, LONGEST_DELAY_MS // max(1, self.files))


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


@dataclass(frozen=True, slots=True)
class Indexed:
    """The outcome of the demo.

    Args:
        task_id: The id of the MCP task.
        structured: The tool's structured result.
        changes: How often the server reported it.
    """

    task_id: str
    structured: Any
    changes: int

    @property
    def job_id(self) -> str:
        """The Celery id of the task's job; the demo's client is an anonymous one."""
        key = build_task_key(None, self.task_id, "tool", TOOL)
        hides_ids = Settings.load().hide_anonymous_ids
        return celery_job_id(key, hidden=Hidden.TASK_ID if hides_ids else Hidden.NOTHING)


def demo() -> None:
    """Start a stack, call two tools of the server, and end the stack."""
    console = Console()
    logs = LogTail()
    with tempfile.TemporaryDirectory(prefix="mcp-celery-demo-") as folder:
        subject = Subject.choose(Path.cwd(), Path(folder, "sample"))
        stack = Stack.prepare(SERVER, host="127.0.0.1", port=0, data_dir=Path(folder, "store"), pool="asyncio")

        async def use(_redis_url: str) -> Indexed:
            print_line(console, f"The MCP server answers at {stack.url}")
            if subject.why_not_here:
                print_line(console, f"The current folder {subject.why_not_here}, so a sample is indexed")
            indexed = await _index(console, stack.url, subject)
            _print_index(console, indexed)
            await _find(console, stack.url, subject.folder)
            return indexed

        # The server's module has set logging up for a server; here it would write between the bar and its text.
        logging.getLogger().setLevel(logging.WARNING)
        print_line(console, stack.starting)
        try:
            indexed = run_stack(stack, logs, use)
        except StopRequested:
            raise click.Abort from None
        except RunError as error:
            raise RunError(f"{error.message}\n{logs.text()}") from error
    _report(console, indexed)


async def _index(console: Console, url: str, subject: Subject) -> Indexed:
    """Index the folder as a client of the server."""
    try:
        with ProgressView(console) as view:
            async with Client(resilient_http(url), extensions=[TasksClient()]) as client:
                view.say(f"Calling the tool {TOOL} on {subject.folder}")
                arguments = {"path": str(subject.folder), "delay_ms": subject.delay_ms}
                handle = await call_tool_task(client, TOOL, arguments)
                await _watch(handle, view)
        result = await handle
    except EXPECTED as error:
        raise RunError(f"the call of {TOOL} failed: {first_of(error)}") from error
    if not handle.task_id:
        raise RunError(f"the server answered the call of {TOOL} without creating a task")
    if result.is_error:
        raise RunError(f"{TOOL} failed: {text_of(result)}")
    return Indexed(handle.task_id, result.structured_content, view.changes)


async def _watch(handle: TaskHandle, view: ProgressView) -> None:
    """Show a task to its end.

    Raises:
        TimeoutError: Nothing was heard of it for too long.
    """
    now = asyncio.get_running_loop().time
    try:
        async with asyncio.timeout(SILENCE_SECONDS) as silence:
            async for state in handle.changes():
                view.show(state)
                silence.reschedule(now() + SILENCE_SECONDS)
    except TimeoutError:
        raise TimeoutError(f"there was no news of the task for {SILENCE_SECONDS:g} s") from None


def _print_index(console: Console, indexed: Indexed) -> None:
    try:
        print_index(console, indexed.structured)
    except ValueError as error:
        raise RunError(f"{TOOL} returned something other than an index: {error}") from error


async def _find(console: Console, url: str, folder: Path) -> None:
    """The second act: a tool that asks in the middle of its work. The user at the terminal answers."""
    lines = Lines()
    answer = Prompter(console, lines, nullcontext).elicit if lines.is_terminal else _Defaults(console)
    print_line(console, f"\nCalling the tool {ASKING_TOOL}, which has a question")
    try:
        async with Client(resilient_http(url), extensions=[TasksClient()], elicitation_callback=answer) as client:
            result = await client.call_tool(ASKING_TOOL, {"path": str(folder)})
    except EXPECTED as error:
        raise RunError(f"the call of {ASKING_TOOL} failed: {first_of(error)}") from error
    if result.is_error:
        print_line(console, text_of(result))
    else:
        print_structured(console, result.structured_content)


@dataclass(frozen=True, slots=True)
class _Defaults:
    """Answers a form with its default values, where there is no terminal."""

    console: Console

    async def __call__(self, context: ClientRequestContext, params: types.ElicitRequestParams) -> types.ElicitResult:  # noqa: ARG002
        """The elicitation callback of a client."""
        if isinstance(params, types.ElicitRequestURLParams):
            return types.ElicitResult(action="decline")
        fields: dict[str, Any] = params.requested_schema.get("properties", {})
        content = {name: field["default"] for name, field in fields.items() if "default" in field}
        print_line(self.console, f"? {params.message}  {json.dumps(content)} by default: there is no terminal")
        return types.ElicitResult(action="accept", content=content)


def _report(console: Console, indexed: Indexed) -> None:
    print_line(console, f"\nTask       {indexed.task_id} completed")
    print_line(console, f"Changes    {indexed.changes}, pushed by the server")
    print_line(console, f"Celery id  {indexed.job_id}")
    ourselves = typed("mcp-celery")
    flower = " --flower" if find_spec("flower") else ""
    print_line(console, "\nThree commands to try next:")
    for command, what in (
        (f"dev {SERVER}{flower}", f"the same server, until Ctrl-C{', and its jobs in a browser' if flower else ''}"),
        (f"call {SHOWN_URL} render_fractal", "a call from another terminal, which saves a picture in its folder"),
        ("init my-server", "a server of your own, to start from"),
    ):
        print_line(console, f"  # {what}")
        print_line(console, f"  {ourselves} {command}")
