"""Shared by the client's commands: the connection, and the output about a task."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

import click
import mcp_types as types
from mcp.client import Client
from mcp.client.client import ConnectMode
from mcp.client.session import ElicitationFnT
from rich.console import Console

from mcp_celery.cli.headers import Headers
from mcp_celery.cli.output import at_words, typed
from mcp_celery.cli.remote.render import print_error, print_line
from mcp_celery.cli.remote.results import print_result, text_of
from mcp_celery.client import TasksClient, TaskState, resilient_http
from mcp_celery.common.durations import span
from mcp_celery.common.escaping import escaped
from mcp_celery.common.installed import PACKAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A server, and whether people or programs read the output.

    Args:
        url: Its endpoint.
        headers: Sent with each request.
        machine: Whether standard output is JSON.
    """

    url: str
    headers: Headers
    machine: bool

    def client(
        self, *, elicitation: ElicitationFnT | None = None, tasks: bool = True, mode: ConnectMode = "auto"
    ) -> Client:
        """A client of the server.

        Args:
            elicitation: Answers questions; None: the server may ask none.
            tasks: Whether the server may make tasks.
            mode: How the revision is chosen, as for the SDK's client.
        """
        return Client(
            resilient_http(self.url, headers=self.headers.sent),
            extensions=[TasksClient()] if tasks else None,
            elicitation_callback=elicitation,
            client_info=types.Implementation(name="mcp-celery", version=version(PACKAGE)),
            mode=mode,
        )

    @property
    def address(self) -> str:
        """Host and port of the server."""
        parts = urlsplit(self.url)
        return f"{parts.hostname or ''}:{parts.port or {'http': 80, 'https': 443}[parts.scheme]}"

    def resume_command(self, task_id: str) -> str:
        """The command that continues with a task; headers without their values, which may be secret."""
        target, options = [self.url, task_id], self.headers.options
        # Ids of other servers may begin with a hyphen, as options do.
        ordered = [*options, "--", *target] if task_id.startswith("-") else [*target, *options]
        return shlex.join([typed("mcp-celery"), "task", "watch", *ordered])

    def print_detached(self, state: TaskState) -> None:
        """Print the id of a task that is left running, and how to follow it."""
        if self.machine:
            print_json(state)
            return
        print_line(Console(), state.task_id)
        print_line(Console(stderr=True), f"To follow it:\n  {self.resume_command(state.task_id)}")

    def print_state(self, state: TaskState, *, name: str) -> None:
        """Print what is known of a task: its result, or how it stands.

        Args:
            state: What is known.
            name: What files are named after.
        """
        if self.machine:
            print_json(state)
        elif state.status == "completed" and "content" not in (state.result or {}):
            print_line(Console(), json.dumps(state.result, ensure_ascii=False))  # a prompt's or a resource's
        elif state.status == "completed":
            print_tool_result(types.CallToolResult.model_validate(state.result, by_name=False), name=name)
        else:
            reason = state.error.message if state.error else state.status_message
            line = f"Task {state.task_id}: {state.status}" + (f": {reason}{_age_of(state)}" if reason else "")
            line = at_words(line, sys.stderr if state.is_final else sys.stdout)
            print_line(Console(stderr=state.is_final), line, style="red" if state.status == "failed" else "")


def _age_of(state: TaskState) -> str:
    """How long ago an open task was created, as far as the server says so."""
    if state.is_final or state.created_at is None:
        return ""
    return f" (created {span((datetime.now(UTC) - state.created_at).total_seconds() * 1000)} ago)"


def print_json(state: TaskState, *, has_task: bool = True) -> None:
    """Print a task for machines, on one line: the fields of SEP-2663, and ``progress``.

    Control and bidi characters are escaped: a terminal must not obey what a server sends, and JSON keeps its value.

    Args:
        state: What is known of it.
        has_task: Whether there is a task; else it is the result of a plain call.
    """
    left_out = None if has_task else {"task_id"}
    told = state.model_dump(by_alias=True, mode="json", exclude_none=True, exclude_defaults=True, exclude=left_out)
    click.echo(escaped(json.dumps(told, ensure_ascii=False)))


def print_tool_result(result: types.CallToolResult, *, name: str) -> None:
    """Print a tool's result; one with an error goes to standard error."""
    if result.is_error:
        print_error(text_of(result) or "the tool failed, and does not say why")
    else:
        print_result(Console(), result, name=name, folder=Path())
