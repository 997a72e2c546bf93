"""Tasks that are asked for in the server's own process instead of over the wire."""

from __future__ import annotations

from mcp_types import CallToolResult, GetPromptResult, ReadResourceResult, Task
from mcp_types.methods import parse_server_result

from mcp_celery.common.jsonable import NotJSONError, json_value
from mcp_celery.config import TaskMeta
from mcp_celery.context import TaskContextSnapshot
from mcp_celery.engine import Caller, JSONObject, TaskEngine, TaskRecord
from mcp_celery.errors import InvalidRequestError
from mcp_celery.keys import METHODS, TaskType
from mcp_celery.protocol.caller import caller_of_request, snapshot_of
from mcp_celery.protocol.host import TaskHost
from mcp_celery.protocol.revision import RequestContext, TaskRevision
from mcp_celery.protocol.shared_wire import require_result

TaskResult = CallToolResult | GetPromptResult | ReadResourceResult


class SubmittedTask:
    """A task that was submitted in this process. Its holder may read and cancel the task.

    Attributes:
        task_id: The id that a client would hold.
        created: The task as it was created, as the SDK's model shows it.
    """

    def __init__(self, engine: TaskEngine, record: TaskRecord, revision: TaskRevision) -> None:
        self.task_id = record.task_id
        self._revision = revision
        self.created = self._shown(record)
        self._engine = engine
        self._caller = Caller(record.scope, record.issuer)

    async def get(self) -> Task:
        """The task as it stands.

        Raises:
            TaskNotFoundError: It has expired.
            StoreUnavailableError: The store did not answer.
        """
        return self._shown(await self._engine.status(self._caller, self.task_id))

    async def result(self) -> TaskResult:
        """Wait for the task's end.

        Returns:
            What the request would have returned, also one with ``is_error``.

        Raises:
            MCPError: The error that the request ended in; -32800 for a cancelled task.
            TaskNotFoundError: It has expired.
            ResultUnavailableError: It completed, but the result backend does not give the result.
            StoreUnavailableError: The store did not answer.
        """
        view = await self._engine.wait(self._caller, self.task_id)
        require_result(view.record, "task")
        method, result = METHODS[view.record.task_type], self._revision.encode_result(view)
        return parse_server_result(method, self._revision.version, result)  # pyright: ignore[reportReturnType]

    async def cancel(self) -> Task:
        """Cancel the task; one that has ended stays as it is.

        Raises:
            TaskNotFoundError: It has expired.
            StoreUnavailableError: The store did not answer; nothing was cancelled.
        """
        return self._shown(await self._engine.cancel(self._caller, self.task_id))

    def _shown(self, record: TaskRecord) -> Task:
        return Task.model_validate(self._revision.encode_task(record), by_name=False)


async def submit(
    host: TaskHost,
    task_type: TaskType,
    params: JSONObject,
    ctx: RequestContext | None,
    meta: TaskMeta,
    revision: TaskRevision,
) -> SubmittedTask:
    """Submit a task as the current caller.

    Args:
        host: The server whose component is to run.
        task_type: Kind of the component.
        params: Parameters of the MCP request.
        ctx: The request that is being served, None outside one.
        meta: What is asked about the task.
        revision: Whose form of a task the SDK has a model of; outside a request the task is made under it.

    Raises:
        InvalidRequestError: There is no such component, it refuses the arguments, or they have no JSON form.
        TaskModeError: It does not run as a task.
        LimitExceededError: Nothing was created: the caller has too many open tasks, or too many jobs wait.
        StoreUnavailableError: Nothing was created.
        QueueUnavailableError: Nothing was created.
    """
    try:
        params = json_value(params)
    except NotJSONError as error:
        raise InvalidRequestError(f"A task takes arguments that are JSON: {error}") from error
    snapshot = (
        TaskContextSnapshot.capture(protocol_version=revision.version, params=params)
        if ctx is None
        else snapshot_of(ctx, params, host.header_names)
    )
    engine = host.engine()
    record = await engine.submit(await host.submission(task_type, snapshot, caller_of_request(ctx), meta))
    return SubmittedTask(engine, record, revision)
