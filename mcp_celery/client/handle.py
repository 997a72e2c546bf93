"""``TaskHandle``: a task in the hand, to be awaited, watched, answered, cancelled, and found again later."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping
from typing import Any, Generic, Self

import mcp_types as types
from mcp.client import Client
from pydantic import BaseModel
from typing_extensions import TypeVar

from mcp_celery.client.errors import ClientClosedError, TaskEndedError
from mcp_celery.client.extension import TasksClient
from mcp_celery.client.tracked_task import FollowedTask, StatusCallback, is_async
from mcp_celery.client.tracker import TaskFollower
from mcp_celery.client.wire import JSON, Status, TaskState

ResultT = TypeVar("ResultT", bound=types.Result, default=types.CallToolResult)


class TaskHandle(Generic[ResultT]):
    """A task on a server, as `call_tool_task`, `get_prompt_task`, `read_resource_task` and `resume` return it.

    The client follows the task in the background while your code holds the handle, or waits on it. The last state and
    the result can be read after the client is closed.
    """

    def __init__(self, task: FollowedTask, follower: TaskFollower, *, has_task: bool = True) -> None:
        self._task = task
        self._task.holders.add(self)
        self._follower = follower
        self._has_task = has_task

    @classmethod
    async def resume(cls, client: Client, task_id: str, *, answer: bool = True) -> Self:
        """Find a task again, for example by an id that an earlier process kept.

        Args:
            client: A client with a `TasksClient` among its extensions, for the same server and the same user. On a
                connection of revision 2025-11-25 the task may be that of a prompt or resource, too.
            task_id: The task's id.
            answer: Whether the client's callbacks answer the task's questions.

        Raises:
            TaskGoneError: The server knows no such task.
            TaskError: The server does not answer about tasks.
            MCPError: The server could not be reached, or has no tasks.
            RuntimeError: The client is not open.
            ValueError: It has no `TasksClient`.
        """
        follower = follower_of(client)
        follower.channel.require_tasks(task_id)
        state = await follower.find(task_id)
        task = follower.follow(state, answering=answer, result_type=follower.channel.result_type)
        return cls(task, follower)

    @property
    def task_id(self) -> str:
        """The id with which `resume` finds the task again; empty if the server answered the call without a task."""
        return self._task.task_id if self._has_task else ""

    @property
    def state(self) -> TaskState:
        """The last state that the client received."""
        return self._task.state

    @property
    def silent_seconds(self) -> float | None:
        """For how long the server has not answered requests about the task; None: it answered the last one."""
        return self._task.silent_seconds

    @property
    def questions(self) -> Mapping[str, JSON]:
        """The open questions by their keys, as the server sent them: ``{"method": …, "params": …}``.

        None on connections of revision 2025-11-25, whose servers ask the client's callbacks only.
        """
        return self._task.state.input_requests

    def __await__(self) -> Generator[Any, Any, ResultT]:
        """As `result` without a timeout."""
        return self._task.result().__await__()

    def __repr__(self) -> str:
        return f"<TaskHandle {self.task_id}: {self.state.status}>"

    async def result(self, timeout: float | None = None) -> ResultT:  # noqa: ASYNC109 - as elsewhere in MCP
        """The result of the tool, prompt or resource, as soon as it is there.

        Args:
            timeout: How long to wait, in seconds; None: for as long as it takes.

        Returns:
            The result; one with ``is_error`` holds the error that the tool reports.

        Raises:
            TaskFailedError: The task ended with a JSON-RPC error.
            TaskCancelledError: The task was cancelled.
            TaskTimeoutError: The task takes longer; it continues.
            AnswerError: The task waits for an answer that this client cannot give.
            ClientClosedError: The client was closed before the task ended.
            TaskError: The server reports nothing more about the task.
        """
        return await self._task.result(timeout)

    async def status(self) -> TaskState:
        """Ask the server for the task's state. A final state is returned without a request.

        Raises:
            TaskError: The server no longer has the task, or the client is closed.
            MCPError: The server could not be reached.
        """
        if self._task.state.is_final:
            return self._task.state
        return await self._open_follower().refresh(self._task)

    async def wait(self, status: Status | None = None, timeout: float | None = None) -> TaskState:  # noqa: ASYNC109
        """Wait until the task has a status.

        Args:
            status: Which; None: any final one.
            timeout: How long to wait, in seconds; None: for as long as it takes.

        Returns:
            The task's state then.

        Raises:
            TaskTimeoutError: The task takes longer; it continues.
            TaskError: The task ended with another status, or the server reports nothing more about it.
        """
        return await self._task.wait(status, timeout)

    async def cancel(self) -> TaskState:
        """Ask the server to cancel the task. A task that has ended stays as it is.

        Returns:
            The task's state right after: a server may need a moment, and the task may end with another status first.

        Raises:
            TaskError: The server does not have the task, or the client is closed.
            MCPError: The server could not be reached.
        """
        if not self._task.state.is_final:
            follower = self._open_follower()
            await follower.cancel(self._task)
        return self._task.state

    async def answer(self, responses: Mapping[str, types.InputResponse | JSON]) -> None:
        """Answer questions. The client's callbacks no longer answer those of them that they work on.

        Args:
            responses: Answers by the keys of `questions`: ``ElicitResult(…)``, ``CreateMessageResult(…)``,
                ``ListRootsResult(…)``, or the same as JSON, ``{"action": "accept", "content": {"name": "Ada"}}``.

        Raises:
            AnswerError: The server refused an answer; the question stays open. Always on connections of revision
                2025-11-25.
            TaskEndedError: The task has ended.
            ClientClosedError: The client is closed.
            MCPError: The server could not be reached.
        """
        if self._task.state.is_final:
            raise TaskEndedError(self._task.task_id, f"task {self.task_id} has ended: it no longer takes answers")
        await self._open_follower().answer(self._task, {key: on_the_wire(answer) for key, answer in responses.items()})

    def changes(self) -> AsyncGenerator[TaskState]:
        """Iterate over the task's current state and each later one, to the last.

        Slow code gets the newest state next. The iteration ends after a final state, of any kind.

        Raises:
            TaskError: The server reports nothing more about the task.
        """
        return self._task.changes()

    def on_status_change(self, callback: StatusCallback) -> None:
        """Register a callback for each change of the task's status, message or progress.

        An error in a callback is logged, and other callbacks still run. Async callbacks run one call at a time, miss
        states if they take long, and end with the client's context. If the task has already ended, its last state is
        passed; to a sync callback also after the client was closed.

        Args:
            callback: Called with the new state, or a coroutine function.

        Raises:
            ClientClosedError: The client is closed, and the task has not ended or the callback is async.
        """
        if self._task.state.is_final and not is_async(callback):
            self._task.call(callback)
        else:
            self._open_follower().tell(self._task, callback)

    def _open_follower(self) -> TaskFollower:
        if not self._follower.channel.is_open:
            raise ClientClosedError(self._task.task_id)
        return self._follower


def follower_of(client: Client) -> TaskFollower:
    """The tracker of a client's tasks.

    Raises:
        RuntimeError: The client is not open.
        ValueError: It has no `TasksClient`.
    """
    extension = next((one for one in client.extensions or () if isinstance(one, TasksClient)), None)
    if extension is None:
        raise ValueError("this client cannot follow tasks: make it with Client(…, extensions=[TasksClient()])")
    return extension.follower(client.session)


def on_the_wire(answer: BaseModel | JSON) -> JSON:
    """Convert a model of the SDK to JSON; JSON stays as it is."""
    if isinstance(answer, BaseModel):
        return answer.model_dump(by_alias=True, mode="json", exclude_none=True)
    return answer
