"""Tasks for clients that know none: the first answer of a long call names the task, and three tools report on it.

A tool that declares an ``outputSchema`` promises a ``structuredContent`` that fits it, and clients check. So where a
call may be answered with a task, the schema that is shown admits the task's state beside the tool's own output.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated, Final, cast

from mcp.server.context import CallNext, HandlerResult
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolResult, InputRequiredResult, InputResponses, TextContent, ToolAnnotations
from pydantic import BaseModel, Field

from mcp_celery.engine import JSONObject, TaskRecord, TaskStatus
from mcp_celery.errors import ConfigurationError, McpCeleryError
from mcp_celery.protocol.caller import caller_of_request
from mcp_celery.protocol.host import Polling, TaskHost
from mcp_celery.protocol.plain_clients.waiting import attend
from mcp_celery.protocol.question_delivery import give_back
from mcp_celery.protocol.revision import RequestContext
from mcp_celery.protocol.revisions import revision_of

MAX_WAIT_SECONDS: Final = 50.0
"""Clients commonly give a request up after a minute."""
TASK_META_KEY: Final = "mcp-celery/task"
"""``{"taskId": …}`` in the ``_meta`` of a first answer, for programs."""

_TaskId = Annotated[str, Field(description="The task id that the tool's first answer gave you.")]
_Wait = Annotated[
    float,
    Field(ge=0, le=MAX_WAIT_SECONDS, description="How many seconds to wait for the end before answering that it runs."),
]
_NEXT: Final[dict[TaskStatus, str]] = {
    "working": "It runs. Call {result} with this task_id to wait for its result, or {cancel} to stop it.",
    "input_required": "It has a question. Call {result} with this task_id: the question is asked meanwhile.",
    "completed": "It has ended. Call {result} with this task_id to get its result.",
    "failed": "It has failed; there is no result.",
    "cancelled": "It was cancelled; there is no result.",
}


class TaskState(BaseModel):
    """The state of a task, in words for a model."""

    task_id: str
    status: TaskStatus
    message: str | None = Field(default=None, description="The task's own message, for example its progress.")
    progress: float | None = None
    total: float | None = Field(default=None, description="The progress at which it will be done, where it knows.")
    next_step: str = Field(description="What you can do now.")


def state_of(record: TaskRecord, polling: Polling) -> TaskState:
    """A task's state in words."""
    progress = record.progress
    return TaskState(
        task_id=record.task_id,
        status=record.status,
        message=record.status_message,
        progress=None if progress is None else progress.value,
        total=None if progress is None else progress.total,
        next_step=_NEXT[record.status].format(result=polling.result, cancel=polling.cancel),
    )


def first_answer(record: TaskRecord, polling: Polling, immediate_response: str | None) -> CallToolResult:
    """The answer to a call that continues as a task: text for the model, and the state as ``structuredContent``.

    Args:
        record: The task.
        polling: How the tools are called.
        immediate_response: The tool's text for the model meanwhile, None for none.
    """
    text = (
        f"{record.component} has not ended yet; it goes on in the background as a task.\n"
        f"task_id: {record.task_id}\n"
        f"Do not call {record.component} again for this. Call {polling.result} with this task_id to wait for the "
        f"result; repeat that until it has ended. {polling.status} shows how far it is, {polling.cancel} stops it."
    )
    return CallToolResult(
        content=[
            TextContent(type="text", text=text if immediate_response is None else f"{immediate_response}\n{text}")
        ],
        structured_content=state_of(record, polling).model_dump(mode="json", exclude_none=True),
        _meta={TASK_META_KEY: {"taskId": record.task_id}},
    )


def add_polling_tools(host: TaskHost, *, after: float, prefix: str) -> Polling:
    """Register the three tools.

    Args:
        host: The server.
        after: Seconds that a call's first answer waits for the end.
        prefix: What the tools' names begin with.

    Returns:
        How they are called.

    Raises:
        ConfigurationError: ``after`` is out of range, or the server has a tool of such a name.
    """
    if not 0 <= after <= MAX_WAIT_SECONDS:
        raise ConfigurationError(f"add_polling_tools(after={after!r}): must be within 0…{MAX_WAIT_SECONDS:g} seconds")
    polling = Polling(after, prefix)
    source = host.components.source
    for name in polling.names:
        if source.has_tool(name):
            raise ConfigurationError(f"add_polling_tools(prefix={prefix!r}): there is a tool {name!r} already")
    looks = ToolAnnotations(read_only_hint=True, open_world_hint=False)
    stops = ToolAnnotations(destructive_hint=True, idempotent_hint=True, open_world_hint=False)
    tools = _PollingTools(host, polling)
    source.add_tool(
        tools.task_status,
        polling.status,
        description="Show how a background task stands: whether it runs, how far it is, whether it has ended. "
        f"Does not wait; to get the result use {polling.result}.",
        annotations=looks,
    )
    source.add_tool(
        tools.task_result,
        polling.result,
        description="Wait for a background task to end and return its result, exactly as the tool that began it would "
        "have. If the task has not ended after wait_seconds the answer says so: then call this again. If the task has "
        "a question for the user, the user is asked meanwhile.",
        annotations=looks,
        structured_output=False,
    )
    source.add_tool(
        tools.task_cancel,
        polling.cancel,
        description="Stop a background task for good. A task that has ended stays as it is.",
        annotations=stops,
    )
    host.polling = polling
    return polling


class _PollingTools:
    """The tools, for any task of their caller.

    Args:
        host: The server they speak for.
        polling: What they are called.
    """

    def __init__(self, host: TaskHost, polling: Polling) -> None:
        self._host = host
        self._polling = polling

    async def task_status(self, ctx: Context, task_id: _TaskId) -> TaskState:
        """How a task stands."""
        engine, caller = self._host.engine(), caller_of_request(ctx.request_context)
        with _as_tool_errors(), engine.pending.place_for(caller):
            record = await engine.status(caller, task_id)
        return state_of(record, self._polling)

    async def task_cancel(self, ctx: Context, task_id: _TaskId) -> TaskState:
        """Cancel a task."""
        engine, caller = self._host.engine(), caller_of_request(ctx.request_context)
        with _as_tool_errors(), engine.pending.place_for(caller):
            record = await engine.cancel(caller, task_id)
        return state_of(record, self._polling)

    async def task_result(
        self, ctx: Context, task_id: _TaskId, wait_seconds: _Wait = 20.0
    ) -> CallToolResult | InputRequiredResult:
        """A task's result; waits for it. A client that stops waiting changes nothing."""
        engine, caller = self._host.engine(), caller_of_request(ctx.request_context)
        with _as_tool_errors():
            with engine.pending.place_for(caller):
                await give_back(engine, caller, task_id, _wire(ctx.input_responses))
            view = await attend(self._host, ctx.request_context, caller, task_id, seconds=wait_seconds)
        record = view.record
        if record.task_type != "tool":
            raise ToolError(f"Task {task_id} is of a {record.task_type}: only results of tools can be read here")
        if record.status == "completed":
            return CallToolResult.model_validate(view.result, by_name=False)
        if record.is_terminal:
            raise ToolError(record.status_message or f"The task has {record.status}")
        if questions := revision_of(ctx.request_context).questions_to_return(view):
            return InputRequiredResult.model_validate({"inputRequests": questions}, by_name=False)
        state = state_of(record, self._polling)
        said = "" if state.message is None else f" It says: {state.message}"
        text = f"The task {task_id} has not ended yet.{said}\nCall {self._polling.result} again to go on waiting."
        return CallToolResult(content=[TextContent(type="text", text=text)])


@contextmanager
def _as_tool_errors() -> Generator[None]:
    """Report this package's errors to a model, as a tool reports its own."""
    try:
        yield
    except McpCeleryError as error:
        raise ToolError(str(error)) from error


def _wire(responses: InputResponses | None) -> dict[str, JSONObject]:
    return {
        key: answer.model_dump(by_alias=True, mode="json", exclude_none=True)
        for key, answer in (responses or {}).items()
    }


class PolledOutputs:
    """Middleware that shows the output schemas of tools whose first answer may be a task, which admit that answer.

    Args:
        host: The server it speaks for.
    """

    def __init__(self, host: TaskHost) -> None:
        self._host = host

    async def __call__(self, ctx: RequestContext, call_next: CallNext) -> HandlerResult:
        """Serve ``tools/list``; everything else passes."""
        result = await call_next(ctx)
        if ctx.method != "tools/list" or not isinstance(result, dict):
            return result
        if self._host.polling is None or revision_of(ctx).follows_tasks(ctx):
            return result
        return {**result, "tools": [await self._admitting(tool) for tool in cast("list[JSONObject]", result["tools"])]}

    async def _admitting(self, tool: JSONObject) -> JSONObject:
        config = (await self._host.components.find("tool", tool["name"])).config
        if "outputSchema" not in tool or self._host.polling_of(config) is None:
            return tool
        return {**tool, "outputSchema": admitting_a_task(tool["outputSchema"])}


def admitting_a_task(schema: JSONObject) -> JSONObject:
    """An output schema that is fulfilled by what fulfils another, and by :class:`TaskState`."""
    shared = {name: schema[name] for name in ("$schema", "$defs") if name in schema}
    own = {name: value for name, value in schema.items() if name not in shared}
    # Up to 2025-11-25 every output is an object, and the schema has to say so at its root.
    is_object = own.get("type", "object") == "object"
    kind: JSONObject = {"type": "object"} if is_object else {}
    return {**kind, **shared, "anyOf": [own, TaskState.model_json_schema()]}
