"""Tools and queues of the user's server: read in this process at the start, in a new one after each change of code."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import click

from mcp_celery.cli.arguments import example_pairs
from mcp_celery.cli.errors import CodeError, StartError, start_errors
from mcp_celery.common.import_path import put_on_path
from mcp_celery.server.celery_tasks import tasks_of
from mcp_celery.server.loading import ServerNotFoundError, load_source
from mcp_celery.settings import Settings


@dataclass(frozen=True, slots=True)
class InspectedTool:
    """A tool of a server.

    Attributes:
        name: Its name.
        is_task: Whether it runs as a task.
        arguments: Its required arguments as ``name=value``, each with a value of its type.
    """

    name: str
    is_task: bool
    arguments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Inspected:
    """The tools and queues of a server.

    Attributes:
        queues: Celery queues that its components use.
        tools: Its tools, by name.
        has_jobs: Whether any component runs as a task.
        in_process: Whether it keeps its tasks in its own process (``memory://``).
    """

    queues: tuple[str, ...]
    tools: tuple[InspectedTool, ...]
    has_jobs: bool
    in_process: bool


def inspect_server(server: str, app_dir: Path) -> Inspected:
    """Import the user's server, and see what it has.

    Args:
        server: As :func:`mcp_celery.server.loading.load_source` takes it.
        app_dir: Folder in which its module is looked for first.

    Raises:
        StartError: A setting is wrong, or there is no such module.
        CodeError: The module or its attribute is wrong. A traceback of the user's code has been printed.
    """
    with start_errors():
        Settings.load()
        put_on_path(app_dir)
    try:
        with start_errors():
            tasks = tasks_of(load_source(server).server)
            queues = tasks.queue_names
            running = tasks.components()
            tools = tuple(
                InspectedTool(
                    one.identifier, ("tool", one.identifier) in running, tuple(example_pairs(one.input_schema))
                )
                for one in sorted(asyncio.run(tasks.source.components()), key=attrgetter("identifier"))
                if one.task_type == "tool"
            )
    except StartError as error:
        if isinstance(error.__cause__, ServerNotFoundError):
            raise
        raise CodeError(error.message) from error
    return Inspected(queues, tools, bool(running), tasks.backend.in_process)


async def inspect_changed_server(server: str, app_dir: Path) -> Inspected | None:
    """As :func:`inspect_server`, in a new process, which imports the code as it is now.

    Returns:
        None where the code cannot be used; the reason has been printed on standard error.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mcp_celery.cli.dev.inspection", server, str(app_dir)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        # A Ctrl-C in the terminal is for the command that started this.
        start_new_session=True,
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        return None
    found: dict[str, Any] = json.loads(output)
    tools = tuple(InspectedTool(one["name"], one["is_task"], tuple(one["arguments"])) for one in found["tools"])
    return Inspected(tuple(found["queues"]), tools, found["has_jobs"], found["in_process"])


def main() -> None:
    """Print what a server has, as JSON; or its error, with exit status 2."""
    server, app_dir = sys.argv[1:]
    try:
        # A module may print while it is imported.
        with redirect_stdout(sys.stderr):
            found = inspect_server(server, Path(app_dir))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    json.dump(asdict(found), sys.stdout)


if __name__ == "__main__":
    main()
