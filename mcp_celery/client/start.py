"""Requests that become tasks: for tools in every revision, in 2025-11-25 for prompts and resources, too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final

import mcp_types as types
from mcp.client import Client
from pydantic import TypeAdapter, ValidationError

from mcp_celery.client.busy import unless_busy
from mcp_celery.client.errors import InvalidTaskError
from mcp_celery.client.extension import handed_over
from mcp_celery.client.handle import TaskHandle, follower_of, on_the_wire
from mcp_celery.client.idempotency import keyed
from mcp_celery.client.tracked_task import TOOL_RESULT, FollowedTask
from mcp_celery.client.tracker import TaskFollower
from mcp_celery.client.wire import JSON, TaskState

_PROMPT_RESULT: Final[TypeAdapter[Any]] = TypeAdapter(types.GetPromptResult)
_RESOURCE_RESULT: Final[TypeAdapter[Any]] = TypeAdapter(types.ReadResourceResult)


async def call_tool_task(
    client: Client,
    name: str,
    arguments: dict[str, Any] | None = None,
    *,
    answer: bool = True,
    ttl: int | None = None,
    **options: Any,
) -> TaskHandle:
    """Call a tool and return as soon as there is a task for it.

    Questions that the server asks before it makes the task are answered by the client's callbacks. (Where the server is
    too busy to take the answers, and the transport is not `resilient_http`, they are asked again.)

    Args:
        client: A client with a `TasksClient` among its extensions.
        name: The tool's name.
        arguments: Its arguments.
        answer: Whether the client's callbacks answer the questions of the task, too. A server of revision 2025-11-25
            may still ask them.
        ttl: How long the server is asked to keep the task, in milliseconds; None: the server decides. After revision
            2025-11-25 it always decides.
        options: As for ``Client.call_tool``.

    Returns:
        The task. If the server answers with the result instead, a completed task with an empty id.

    Raises:
        MCPError: The server refused the call. A busy one is asked again first, for ``TasksClient(busy_seconds=…)``.
        InvalidTaskError: The server's answer is neither a task nor a result.
        RuntimeError: The client is not open.
        ValueError: It has no `TasksClient`.
    """
    follower = follower_of(client)
    options["meta"] = keyed(options.get("meta"))
    request = {"name": name, "arguments": arguments or {}}
    ask = _Request(
        method="tools/call", params=request, result_type=TOOL_RESULT, answering=answer, ttl=ttl, options=options
    )
    if handle := await ask.send(follower):
        return handle
    with handed_over(answering=answer) as handover:
        try:
            result = await unless_busy(
                lambda: client.call_tool(name, arguments, **options), busy_seconds=follower.channel.busy_seconds
            )
        except ValidationError:
            raise InvalidTaskError("", "the server's answer to tools/call is neither a task nor a result") from None
    return TaskHandle(handover.task, follower) if handover.task else _at_once(result, TOOL_RESULT, follower)


async def get_prompt_task(
    client: Client,
    name: str,
    arguments: dict[str, str] | None = None,
    *,
    answer: bool = True,
    ttl: int | None = None,
    **options: Any,
) -> TaskHandle[types.GetPromptResult]:
    """Render a prompt as a task, on a connection of revision 2025-11-25: `call_tool_task` for prompts.

    Args:
        client: A client with a `TasksClient` among its extensions.
        name: The prompt's name.
        arguments: Its arguments.
        answer: As for `call_tool_task`.
        ttl: How long the server is asked to keep the task, in milliseconds; None: the server decides.
        options: As for ``Client.get_prompt``.

    Returns:
        The task. If the server answers with the result instead, a completed task with an empty id.

    Raises:
        TaskError: The connection speaks another revision, in which only tools become tasks, or the server has no tasks.
        MCPError: The server refused.
        RuntimeError: The client is not open.
        ValueError: It has no `TasksClient`.
    """
    follower = follower_of(client)
    follower.channel.require_requests("prompts become tasks")
    request = {"name": name, "arguments": arguments or {}}
    ask = _Request(
        method="prompts/get", params=request, result_type=_PROMPT_RESULT, answering=answer, ttl=ttl, options=options
    )
    if handle := await ask.send(follower):
        return handle
    return _at_once(await client.get_prompt(name, arguments, **options), _PROMPT_RESULT, follower)


async def read_resource_task(
    client: Client, uri: str, *, answer: bool = True, ttl: int | None = None, **options: Any
) -> TaskHandle[types.ReadResourceResult]:
    """Read a resource as a task, on a connection of revision 2025-11-25: `call_tool_task` for resources and templates.

    Args:
        client: A client with a `TasksClient` among its extensions.
        uri: The resource's URI.
        answer: As for `call_tool_task`.
        ttl: How long the server is asked to keep the task, in milliseconds; None: the server decides.
        options: As for ``Client.read_resource``.

    Returns:
        The task. If the server answers with the result instead, a completed task with an empty id.

    Raises:
        TaskError: The connection speaks another revision, in which only tools become tasks, or the server has no tasks.
        MCPError: The server refused.
        RuntimeError: The client is not open.
        ValueError: It has no `TasksClient`.
    """
    follower = follower_of(client)
    follower.channel.require_requests("resources become tasks")
    ask = _Request(
        method="resources/read",
        params={"uri": uri},
        result_type=_RESOURCE_RESULT,
        answering=answer,
        ttl=ttl,
        options=options,
    )
    if handle := await ask.send(follower):
        return handle
    return _at_once(await client.read_resource(uri, **options), _RESOURCE_RESULT, follower)


async def list_tasks(client: Client) -> list[TaskState]:
    """The caller's tasks, on a connection of revision 2025-11-25.

    Args:
        client: A client with a `TasksClient` among its extensions.

    Returns:
        Their states in the server's order, without results; ``TaskHandle.resume`` has those. (A tool that reports an
        error of its own is ``failed`` in this list.)

    Raises:
        TaskError: The connection speaks another revision, the server has no list of tasks, or it sent something else.
        MCPError: The server refused, or could not be reached.
        RuntimeError: The client is not open.
        ValueError: It has no `TasksClient`.
    """
    return list(await follower_of(client).channel.list())


@dataclass(frozen=True, slots=True)
class _Request:
    """A request that asks for a task, where the session's revision has such requests."""

    method: str
    params: JSON
    result_type: TypeAdapter[Any]
    _: KW_ONLY
    answering: bool
    ttl: int | None
    options: Mapping[str, Any]

    async def send(self, follower: TaskFollower) -> TaskHandle[Any] | None:
        """Start the request as a task; None where the server would not create one, and it is sent plainly."""
        seconds = self.options.get("read_timeout_seconds")
        params = {**self.params, "_meta": keyed(self.options.get("meta"))}
        answer = await follower.channel.request_task(self.method, params, self.ttl, seconds)
        if answer is None:
            return None
        if isinstance(answer, TaskState):
            return TaskHandle(follower.follow(answer, answering=self.answering, result_type=self.result_type), follower)
        return _at_once(answer, self.result_type, follower)


def _at_once(result: types.Result | JSON, result_type: TypeAdapter[Any], follower: TaskFollower) -> TaskHandle[Any]:
    """A handle without a task, for a request that was answered with its result."""
    state = TaskState(task_id="at once", status="completed", result=on_the_wire(result))
    ended = FollowedTask(state, answering=False, is_open=lambda: False, result_type=result_type)
    return TaskHandle(ended, follower, has_task=False)
