"""The output of ``mcp-celery dev``: a summary when it is ready, then lines for tasks, warnings and errors."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from typing import Final

from mcp_celery.cli.arguments import call_command
from mcp_celery.cli.dev.inspection import InspectedTool
from mcp_celery.cli.output import LogTail
from mcp_celery.cli.sockets import ANSWERS

MOST_TOOLS: Final = 8
"""The most tools that the summary names, so that it fits a terminal of 24 lines."""
_SCOPE: Final = r'(?:null|"(?:[^"\\]|\\.)*")'
_CREATED: Final = re.compile(rf'event=task\.created scope={_SCOPE} task=(\S+) type=\S+ component="((?:[^"\\]|\\.)*)"')
_ENDED: Final = re.compile(rf"event=task\.ended scope={_SCOPE} task=(\S+) status=(\S+)(?:.* tool_error=(true))?")
_LEVEL: Final = re.compile(r"^.{0,60}?\b(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b")
_READY: Final = re.compile(r"""\S+@\S+ ready\.(?:["'\s]|$)""")
"""By which Celery's worker says that it consumes its queues, in whatever format the user's code logs."""
_SHOWN_LEVELS: Final = frozenset({"WARNING", "ERROR", "CRITICAL"})
MOST_OPEN: Final = 10_000
"""The most tasks whose start is remembered."""


class TaskLines:
    """Shows of the lines of children: one for each task that is created and ended, warnings and errors, and what the
    user's code prints once everything runs. It keeps the last lines of each child.

    Args:
        show: Prints a child's line, given the child's name and the line.
        say: Prints a line of this command.
        everything: Whether every line is shown as it is.
        clock: Seconds, for durations.

    Attributes:
        worker_is_ready: Set when the worker consumes its queues.
        server_answers: Set when the server has said that it answers.
    """

    def __init__(
        self,
        show: Callable[[str, str], None],
        say: Callable[[str], None],
        *,
        everything: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.worker_is_ready = asyncio.Event()
        self.server_answers = asyncio.Event()
        self._show = show
        self._say = say
        self._everything = everything
        self._clock = clock
        self._tail = LogTail()
        self._started: dict[str, tuple[str, float]] = {}
        self._ready: set[str] = set()
        self._shows: dict[str, bool] = {}

    def ready(self, name: str) -> None:
        """From now on, show also those lines of a child that are no log lines: the user's code prints them."""
        self._ready.add(name)
        self._shows[name] = True

    def restarting(self) -> None:
        """From now on, take the lines of a new server and a new worker."""
        for name, event in (("server", self.server_answers), ("worker", self.worker_is_ready)):
            event.clear()
            self._ready.discard(name)
            self._shows.pop(name, None)

    @property
    def text(self) -> str:
        """The last lines of all children."""
        return self._tail.text()

    def __call__(self, name: str, line: str) -> None:
        """Take one line of a child."""
        self._tail(name, line)
        if name == "worker" and _READY.search(line):
            self.ready(name)
            self.worker_is_ready.set()
        elif name == "server" and ANSWERS in line:
            self.ready(name)
            self.server_answers.set()
        if self._everything:
            self._show(name, line)
        elif created := _CREATED.search(line):
            self._note(created[1], created[2])
        elif ended := _ENDED.search(line):
            self._end(ended[1], "failed (tool error)" if ended[3] else ended[2])
        elif self._is_shown(name, line):
            self._show(name, line)

    def _is_shown(self, name: str, line: str) -> bool:
        level = _LEVEL.search(line)
        if level is not None:
            self._shows[name] = level[1] in _SHOWN_LEVELS
        elif line.startswith("Traceback") or not line[:1].isspace():
            self._shows[name] = name in self._ready or line.startswith(("Traceback", "Error"))
        # The further lines of a record are indented.
        return self._shows.get(name, False) and bool(line.strip())

    def _note(self, task_id: str, component: str) -> None:
        if len(self._started) >= MOST_OPEN:
            self._started.pop(next(iter(self._started)))
        self._started[task_id] = (component, self._clock())
        self._say(f"{time.strftime('%H:%M:%S')}  {component}  task {task_id} created")

    def _end(self, task_id: str, status: str) -> None:
        component, since = self._started.pop(task_id, ("", None))
        lasted = "" if since is None else f" after {duration(self._clock() - since)}"
        named = f"{component}  " if component else ""
        self._say(f"{time.strftime('%H:%M:%S')}  {named}task {task_id} {status}{lasted}")


def duration(seconds: float) -> str:
    """A duration for people.

    >>> duration(0.0123), duration(3.21), duration(75)
    ('12 ms', '3.2 s', '1:15 min')
    """
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60}:{int(seconds) % 60:02} min"


def summary(
    *,
    server: str,
    url: str,
    tools: Sequence[InspectedTool],
    worker: str,
    store: str,
    flower: str,
    program: str,
    exports: str = "",
) -> str:
    """The text that says what runs and how to use it.

    Args:
        server: The server, as the user named it.
        url: Where clients connect.
        tools: The server's tools.
        worker: What runs the jobs.
        store: Where the tasks are kept.
        flower: Where Flower is, or how to start it.
        program: How to type ``mcp-celery``.
        exports: What to type in another terminal before the commands of operators. Empty: they do not reach these
            tasks.
    """
    named = [f"{tool.name} (task)" if tool.is_task else tool.name for tool in tools[:MOST_TOOLS]]
    if len(tools) > MOST_TOOLS:
        named.append(f"and {len(tools) - MOST_TOOLS} more: {program} tools {url}")
    rows = {"tools": ", ".join(named) or "none", "worker": worker, "store": store, "Flower": flower}
    lines = [f"  {label:<7} {value}" for label, value in rows.items() if value]
    example = next((tool for tool in tools if tool.is_task), tools[0] if tools else None)
    if example is not None:
        # Without the path, which `call` adds: so the line mostly fits a terminal of 80 columns.
        command = call_command(url.removesuffix("/mcp"), example.name, example.arguments, program=program)
        lines.append(f"  call    {command}")
    if exports:
        # On a line of its own, to be copied as it is.
        lines += [
            "",
            f"For `{program} tasks`, `workers` and `doctor` in another terminal:",
            f"  {exports}",
        ]
    return "\n".join([f"\n{server} answers at {url} (Ctrl-C stops everything)", *lines, ""])
