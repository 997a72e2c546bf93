"""``dev --reload``: the worker and the server are started anew when the user's code changes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

from watchfiles import PythonFilter, awatch

from mcp_celery.cli.dev.inspection import Inspected, inspect_changed_server
from mcp_celery.cli.dev.stack import Stack, code_folders, raise_on_signal
from mcp_celery.cli.dev.summary import TaskLines
from mcp_celery.cli.dev.supervisor import ChildExit, StopSignals, Supervisor, unless_interrupted
from mcp_celery.cli.errors import RunError

DEBOUNCE_MS: Final = 200
"""The files that an editor or a checkout writes within this time are one change."""
CODE: Final = ("worker", "server")
"""The processes that run the user's code."""
MOST_NAMES: Final = 3
"""The most changed files that a line names."""

T = TypeVar("T")


def await_usable_code(server: str, app_dir: Path, say: Callable[[str], None]) -> Inspected:
    """Wait until a change makes the user's code usable, which was not at the start.

    Args:
        server: The server, as :func:`mcp_celery.server.loading.load_source` takes it.
        app_dir: Folder in which its module is looked for first.
        say: Prints a line.

    Returns:
        What the server has.

    Raises:
        StopRequested: A signal came first.
    """

    async def wait() -> Inspected:
        with StopSignals() as signals:
            return await unless_interrupted(_first_usable(server, app_dir, say), raise_on_signal(signals))

    return asyncio.run(wait())


async def _first_usable(server: str, app_dir: Path, say: Callable[[str], None]) -> Inspected:
    async with aclosing(_changes(code_folders(server, app_dir))) as changes:
        while True:
            change = _begin(anext(changes))
            try:
                # Now the files are watched: a change that follows the line is seen.
                await asyncio.sleep(0)
                say(f"{_now()}  not started: save a file to try again")
                say(f"{_now()}  {_named(await change)} changed")
            finally:
                change.cancel()
                await asyncio.gather(change, return_exceptions=True)
            if (found := await inspect_changed_server(server, app_dir)) is not None:
                return found


class Reloader:
    """Starts the worker and the server of a stack anew after each change of a Python file.

    Code that cannot be imported stops nothing: the processes go on with what they have, until a later change can be.

    Args:
        stack: What runs.
        lines: What the children print.
        say: Prints a line.
    """

    def __init__(self, stack: Stack, lines: TaskLines, say: Callable[[str], None]) -> None:
        self._stack = stack
        self._lines = lines
        self._say = say

    async def run(self, supervisor: Supervisor, redis_url: str) -> None:
        """Watch the files, without end.

        Args:
            supervisor: Runs the stack's processes.
            redis_url: The stack's store.

        Raises:
            RunError: A process has ended that does not run the user's code.
        """
        async with aclosing(_changes(self._stack.code_folders)) as changes:
            change, ended = _begin(anext(changes)), _begin(supervisor.first_exit())
            try:
                while True:
                    await asyncio.wait({change, ended}, return_when=asyncio.FIRST_COMPLETED)
                    if ended.done():
                        self._report(ended.result())
                        ended = _begin(supervisor.first_exit())
                    if change.done():
                        changed, change = change.result(), _begin(anext(changes))
                        await self._take(changed, supervisor, redis_url, ended, change)
            finally:
                for task in (change, ended):
                    task.cancel()
                # The generator can only be closed when no task waits for it any more.
                await asyncio.gather(change, ended, return_exceptions=True)

    def _report(self, ended: ChildExit) -> None:
        if ended.name not in CODE:
            raise RunError(f"{ended}; everything else was stopped")
        self._say(f"{self._lines.text}\n{_now()}  {ended}; it is started again when a file is saved")

    async def _take(
        self,
        changed: set[str],
        supervisor: Supervisor,
        redis_url: str,
        ended: asyncio.Task[ChildExit],
        change: asyncio.Task[set[str]],
    ) -> None:
        self._say(f"{_now()}  {_named(changed)} changed")
        found = await inspect_changed_server(self._stack.server, self._stack.app_dir)
        if found is None:
            self._say(f"{_now()}  not restarted: save a file to try again")
            return
        self._stack = replace(self._stack, queues=found.queues, tools=found.tools, has_jobs=found.has_jobs)
        await supervisor.end(*CODE)
        self._lines.restarting()
        await self._stack.start_code(supervisor, redis_url)
        if await self._is_ready(ended, change):
            self._say(f"{_now()}  restarted: {_counted(found)}")

    async def _is_ready(self, ended: asyncio.Task[ChildExit], change: asyncio.Task[set[str]]) -> bool:
        """Wait until the new processes are ready. False: one of them has ended, which its waiter reports; or the code
        has changed again.
        """
        waiting = [_begin(self._lines.server_answers.wait())]
        if self._stack.has_worker:
            waiting.append(_begin(self._lines.worker_is_ready.wait()))
        ready = asyncio.gather(*waiting)
        try:
            await asyncio.wait({ready, ended, change}, return_when=asyncio.FIRST_COMPLETED)
            return ready.done()
        finally:
            ready.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)


async def _changes(folders: tuple[Path, ...]) -> AsyncGenerator[set[str]]:
    """The names of changed Python files, those of virtual environments and caches left out."""
    async for found in awatch(*folders, watch_filter=PythonFilter(), debounce=DEBOUNCE_MS):
        yield {Path(path).name for _, path in found}


def _begin(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    return asyncio.ensure_future(work)


def _named(changed: set[str]) -> str:
    return ", ".join(sorted(changed)[:MOST_NAMES]) + (", …" if len(changed) > MOST_NAMES else "")


def _counted(found: Inspected) -> str:
    number, tasks = len(found.tools), sum(tool.is_task for tool in found.tools)
    return f"{number} tool{'' if number == 1 else 's'}, {tasks} of them as {'a task' if tasks == 1 else 'tasks'}"


def _now() -> str:
    return time.strftime("%H:%M:%S")
