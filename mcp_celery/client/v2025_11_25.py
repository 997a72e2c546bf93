"""Tasks of revision 2025-11-25, where they are a part of the core protocol (SEP-1686), as a client reads them.

The SDK knows the revision, but not its tasks: it would refuse the answer to a request with ``task`` in it, so requests
go out one layer below its checks, and what comes back is checked here. Pushes reach the extension as any others do.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Annotated, Any, Final, NoReturn

import anyio
import mcp_types as types
from mcp.client.session import ClientSession
from mcp.shared.dispatcher import CallOptions
from mcp.shared.exceptions import MCPError
from pydantic import Field, TypeAdapter, ValidationError, model_validator
from typing_extensions import override

from mcp_celery.client.busy import unless_busy
from mcp_celery.client.errors import AnswerError, InvalidTaskError, TaskError
from mcp_celery.client.session import TaskChannel, is_closed
from mcp_celery.client.tracked_task import FollowedTask
from mcp_celery.client.wire import JSON, LONGEST_MESSAGE, Dispensable, Milliseconds, TaskState, parse_task
from mcp_celery.errors import LIMIT_EXCEEDED

VERSION: Final = "2025-11-25"
RESULT_SECONDS: Final = 240.0
"""How long one ``tasks/result`` is held open for questions; less than the SDK lets a stream be silent."""
MOST_PAGES: Final = 1000
"""Of a list, so that one without an end ends."""
ANY_RESULT: Final[TypeAdapter[Any]] = TypeAdapter(
    types.CallToolResult | types.GetPromptResult | types.ReadResourceResult
)
"""What a task may result in of which nothing is known but its id."""
_UNANSWERED: Final = frozenset({types.CONNECTION_CLOSED, types.REQUEST_TIMEOUT, types.PARSE_ERROR})
_TRANSPORT_SAYS: Final = "Server returned an error response"
"""What the SDK's HTTP transport answers for a server; the code is one that a task may have failed with."""

logger = logging.getLogger(__name__)


class CoreTask(TaskState):
    """A task as this revision encodes it: without its result, which is asked for in addition."""

    ttl_ms: Annotated[Milliseconds | None, Field(validation_alias="ttl"), Dispensable] = None
    poll_interval_ms: Annotated[Milliseconds | None, Field(validation_alias="pollInterval"), Dispensable] = None

    @model_validator(mode="after")
    def _check_result(self) -> CoreTask:
        return self

    @property
    @override
    def lacks_result(self) -> bool:
        """Whether there is a result, or an error, to be asked for."""
        return self.status in ("completed", "failed") and self.result is None and self.error is None


def _is_own(task: CoreTask, error: MCPError) -> bool:
    """Whether an error in place of a failed task's result is the task's own, and no fault of this one request.

    A failed task may have a result, that of a tool which reports an error, so a fault that passes must not stand for
    it. Servers give codes of such faults to tasks as well; then the task's message has the same text.
    """
    if error.code in _UNANSWERED or error.message == _TRANSPORT_SAYS:
        return False
    is_said = task.status_message == error.message[:LONGEST_MESSAGE]
    if error.code == LIMIT_EXCEEDED or is_closed(error):
        return is_said
    return is_said or task.status_message is None or error.code != types.INTERNAL_ERROR


class CoreTaskChannel(TaskChannel):
    """The tasks methods of this revision on one session.

    Args:
        session: The client's session.
        busy_seconds: How long to go on with a request that a busy server refuses.
    """

    notification = "notifications/tasks/status"
    state_type = CoreTask
    listens = False
    result_type = ANY_RESULT

    def __init__(self, session: ClientSession, *, busy_seconds: float) -> None:
        super().__init__(session, busy_seconds=busy_seconds)
        self._run_as_tasks: dict[str, bool] = {}

    @staticmethod
    def is_spoken_on(session: ClientSession) -> bool:
        """Whether a session speaks this revision with a server that declares tasks."""
        declared = session.server_capabilities
        return session.protocol_version == VERSION and declared is not None and declared.tasks is not None

    @override
    def require_tasks(self, task_id: str) -> None:
        pass

    @override
    def require_requests(self, what: str) -> None:
        pass

    async def _runs_as_task(self, tool: str, seconds: float | None) -> bool:
        """Whether a tool's ``execution.taskSupport`` lets it run as a task; one that is not listed does not.

        Args:
            tool: The tool's name.
            seconds: How long to wait for each page of the list; None: as the client has it.

        Raises:
            MCPError: The server did not list its tools.
            InvalidTaskError: What it sent is no list of tools.
        """
        if tool not in self._run_as_tasks:
            cursors: list[str | None] = [None]
            while cursors[-1] not in cursors[:-1] and len(cursors) <= MOST_PAGES:
                try:
                    with anyio.fail_after(seconds or self._seconds):
                        page = await self.session.list_tools(params=types.PaginatedRequestParams(cursor=cursors[-1]))
                except TimeoutError as error:
                    raise MCPError(types.REQUEST_TIMEOUT, "Request 'tools/list' timed out") from error
                except ValidationError:
                    raise InvalidTaskError("", "the server's list of tools is malformed") from None
                for listed in page.tools:
                    support = listed.execution.task_support if listed.execution else None
                    self._run_as_tasks[listed.name] = support in ("optional", "required")
                cursors.append(page.next_cursor)  # None at the end, which has been before like any that is repeated
        return self._run_as_tasks.get(tool, False)

    @override
    async def request_task(
        self, method: str, params: JSON, ttl: int | None, seconds: float | None
    ) -> CoreTask | JSON | None:
        if method == "tools/call" and not await self._runs_as_task(params["name"], seconds):
            return None
        task = {} if ttl is None else {"ttl": ttl}
        try:
            answer = await self._send(method, {**params, "task": task}, seconds or self._seconds)
        except MCPError as error:
            if error.code != types.METHOD_NOT_FOUND:
                raise
            return None  # the component does not run as a task
        if not isinstance(answer.get("task"), dict):
            return answer
        return await self._with_result(parse_task(answer["task"], model=CoreTask))

    @override
    async def get(self, task_id: str) -> TaskState:
        """``tasks/get``, and ``tasks/result`` of a task that has one.

        A result with a tool's own error is a completed task here, as in the revisions after this one.
        """
        answer = await self._send("tasks/get", {"taskId": task_id}, self._seconds)
        return await self._with_result(parse_task(answer, task_id, CoreTask))

    async def _with_result(self, task: CoreTask) -> CoreTask:
        if not task.lacks_result:
            return task
        try:
            result = await self.result(task.task_id, self._seconds)
        except MCPError as error:
            if task.status == "completed" or not _is_own(task, error):
                raise
            return task.model_copy(update={"error": error.error})
        return task.model_copy(update={"status": "completed", "result": result})

    async def result(self, task_id: str, seconds: float) -> JSON:
        """``tasks/result``: waits for the task's end; the server may ask the client's callbacks meanwhile.

        Args:
            task_id: The task's id.
            seconds: How long to wait.

        Raises:
            MCPError: The error that the task ended in, the server's refusal, or the connection's failure.
        """
        return await self._send("tasks/result", {"taskId": task_id}, seconds)

    @override
    async def cancel(self, task_id: str) -> None:
        try:
            await self._send("tasks/cancel", {"taskId": task_id}, self._seconds)
        except MCPError as error:
            # One code for ended and unknown tasks: the state shows which, or is refused too.
            if error.code != types.INVALID_PARAMS:
                raise
            if not (await self.get(task_id)).is_final:
                raise TaskError(task_id, f"the server does not cancel task {task_id}: {error}") from error

    @override
    async def update(self, task_id: str, responses: Mapping[str, Any]) -> NoReturn:
        raise AnswerError(
            task_id, f"questions of task {task_id} go to the client's callbacks: revision {VERSION} has no other way"
        )

    @override
    async def list(self) -> list[TaskState]:
        declared = self.session.server_capabilities
        if declared is None or declared.tasks is None or declared.tasks.list is None:
            raise TaskError("", "the server does not list tasks: it declares no capability tasks.list")
        tasks: list[TaskState] = []
        seen: list[object] = []
        params: JSON = {}
        while len(seen) < MOST_PAGES:
            page = await self._send("tasks/list", params, self._seconds)
            cursor = page.get("nextCursor")
            if not isinstance(page.get("tasks"), list) or cursor in seen:
                break
            tasks += [parse_task(task, model=CoreTask) for task in page["tasks"]]
            if cursor is None:
                return tasks
            seen.append(cursor)
            params = {"cursor": cursor}
        raise InvalidTaskError("", "the server's list of tasks is malformed or endless")

    @override
    def questions(self, recheck: Callable[[str], Awaitable[None]], patience_seconds: float) -> CoreQuestions:
        return CoreQuestions(self, recheck)

    async def _send(self, method: str, params: JSON, seconds: float) -> JSON:
        request: JSON = {"method": method, "params": params}
        options: CallOptions = {"timeout": seconds}
        self._private._stamp(request, options)

        async def send() -> JSON:
            try:
                return await self._private._dispatcher.send_raw_request(method, request["params"], options)
            except TimeoutError as error:  # the transport's own, while it writes
                raise MCPError(types.REQUEST_TIMEOUT, f"Request {method!r} timed out") from error

        return await unless_busy(send, busy_seconds=self.busy_seconds)


class CoreQuestions:
    """Gives the server of a task that asks something a ``tasks/result`` to ask on: the client's callbacks answer there.

    Args:
        channel: The session's tasks methods.
        recheck: Asks for the state of a task.
    """

    def __init__(self, channel: CoreTaskChannel, recheck: Callable[[str], Awaitable[None]]) -> None:
        self._channel = channel
        self._recheck = recheck
        self._open: set[str] = set()

    def look(self, task: FollowedTask) -> None:
        """See whether the task asks something now."""
        if task.answering and task.state.status == "input_required" and task.task_id not in self._open:
            self._open.add(task.task_id)
            self._channel.start_soon(self._wait, task.task_id, task.pause_seconds(None))

    def take_over(self, task: FollowedTask, keys: Iterable[str]) -> None:
        """The callbacks cannot be skipped, so the channel refuses the answer."""

    async def _wait(self, task_id: str, pause_seconds: float) -> None:
        try:
            await self._channel.result(task_id, RESULT_SECONDS)
        except MCPError as error:
            logger.debug("tasks/result of task %s, while it asks: %s", task_id, error)
        # What is refused at once is opened again when the task is asked for next, and not before; nor by pushes.
        await self._recheck(task_id)
        await anyio.sleep(pause_seconds)
        self._open.discard(task_id)
