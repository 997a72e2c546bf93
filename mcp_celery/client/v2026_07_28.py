"""Tasks of revision 2026-07-28, where they are the extension ``io.modelcontextprotocol/tasks`` (SEP-2663).

A session whose revision has no tasks has this object too: its requests are answered at once, and no task comes of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn

import mcp_types as types
from mcp.shared.exceptions import MCPError
from mcp_types.version import LATEST_HANDSHAKE_VERSION, MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from mcp_celery.client.channel import TaskChannel
from mcp_celery.client.errors import InvalidTaskError, TaskError
from mcp_celery.client.followed import TOOL_RESULT
from mcp_celery.client.questions import TaskQuestions
from mcp_celery.client.wire import JSON, AnyResult, TaskRequest, TaskState, parse_task


class ExtensionChannel(TaskChannel):
    """The extension's methods on one session."""

    notification = "notifications/tasks"
    state_type = TaskState
    listens = True
    result_type = TOOL_RESULT

    def require_tasks(self, task_id: str) -> None:
        """Refuse at a revision without tasks.

        Raises:
            TaskError: The session speaks an earlier revision.
        """
        spoken = self.session.protocol_version
        if spoken not in MODERN_PROTOCOL_VERSIONS:
            known = f"{MODERN_PROTOCOL_VERSIONS[-1]}, and in {LATEST_HANDSHAKE_VERSION} from servers that declare them"
            raise TaskError(task_id, f"there are tasks in revision {known}; this connection speaks {spoken}")

    def require_requests(self, what: str) -> NoReturn:
        """Refuse: the server decides by itself which requests become tasks.

        Raises:
            TaskError: Always.
        """
        spoken = f"this connection speaks {self.session.protocol_version}"
        known = f"{LATEST_HANDSHAKE_VERSION} only, by servers that declare tasks"
        raise TaskError("", f"{what} in revision {known}; {spoken}")

    async def request_task(self, method: str, params: JSON, ttl: int | None, seconds: float | None) -> None:  # noqa: ARG002
        """A plain request, which the server may answer with a task."""
        return

    async def get(self, task_id: str) -> TaskState:
        """``tasks/get``.

        Raises:
            MCPError: The server's refusal, or the connection's failure.
            InvalidTaskError: What the server sent is no state of this task.
        """
        return parse_task(await self._ask("tasks/get", task_id), task_id)

    async def update(self, task_id: str, responses: Mapping[str, Any]) -> None:
        """``tasks/update``: answer questions by their keys.

        Raises:
            MCPError: The server's refusal, or the connection's failure.
            InvalidTaskError: The server's acknowledgement is none.
        """
        await self._ask("tasks/update", task_id, inputResponses=dict(responses))

    async def cancel(self, task_id: str) -> None:
        """``tasks/cancel``.

        Raises:
            MCPError: The server's refusal, or the connection's failure.
            InvalidTaskError: The server's acknowledgement is none.
        """
        await self._ask("tasks/cancel", task_id)

    async def _ask(self, method: str, task_id: str, **params: Any) -> dict[str, Any]:
        request = TaskRequest(method=method, params={"taskId": task_id, **params})
        try:
            answer = await self.session.send_request(request, AnyResult, request_read_timeout_seconds=self._seconds)
        except TimeoutError as error:  # the transport's own, while it writes
            raise MCPError(types.REQUEST_TIMEOUT, f"Request {method!r} timed out") from error
        except ValidationError:
            raise InvalidTaskError(task_id, f"the server's answer to {method} is no result of MCP") from None
        return answer.model_dump(by_alias=True, mode="json")

    async def list(self) -> NoReturn:
        """Refuse: there is no such method in this revision.

        Raises:
            TaskError: Always.
        """
        self.require_requests("tasks are listed")

    def questions(self, recheck: Callable[[str], Awaitable[None]], patience_seconds: float) -> TaskQuestions:
        """The server lists questions in a task's state, and ``tasks/update`` answers them."""
        return TaskQuestions(self, recheck, patience_seconds=patience_seconds)
