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
from typing_extensions import override

from mcp_celery.client.busy import unless_busy
from mcp_celery.client.errors import InvalidTaskError, TaskError
from mcp_celery.client.questions import TaskQuestions
from mcp_celery.client.session import TaskChannel
from mcp_celery.client.tracked_task import TOOL_RESULT
from mcp_celery.client.wire import JSON, AnyResult, TaskRequest, TaskState, parse_task


class ExtensionChannel(TaskChannel):
    """The extension's methods on one session."""

    notification = "notifications/tasks"
    state_type = TaskState
    listens = True
    result_type = TOOL_RESULT

    @override
    def require_tasks(self, task_id: str) -> None:
        spoken = self.session.protocol_version
        if spoken not in MODERN_PROTOCOL_VERSIONS:
            known = f"{MODERN_PROTOCOL_VERSIONS[-1]}, and in {LATEST_HANDSHAKE_VERSION} from servers that declare them"
            raise TaskError(task_id, f"there are tasks in revision {known}; this connection speaks {spoken}")

    @override
    def require_requests(self, what: str) -> NoReturn:
        spoken = f"this connection speaks {self.session.protocol_version}"
        known = f"{LATEST_HANDSHAKE_VERSION} only, by servers that declare tasks"
        raise TaskError("", f"{what} in revision {known}; {spoken}")

    @override
    async def request_task(self, method: str, params: JSON, ttl: int | None, seconds: float | None) -> None:
        return  # the server decides by itself which calls become tasks

    @override
    async def get(self, task_id: str) -> TaskState:
        return parse_task(await self._ask("tasks/get", task_id), task_id)

    @override
    async def update(self, task_id: str, responses: Mapping[str, Any]) -> None:
        await self._ask("tasks/update", task_id, inputResponses=dict(responses))

    @override
    async def cancel(self, task_id: str) -> None:
        await self._ask("tasks/cancel", task_id)

    async def _ask(self, method: str, task_id: str, **params: Any) -> dict[str, Any]:
        request = TaskRequest(method=method, params={"taskId": task_id, **params})

        async def send() -> dict[str, Any]:
            try:
                answer = await self.session.send_request(request, AnyResult, request_read_timeout_seconds=self._seconds)
            except TimeoutError as error:  # the transport's own, while it writes
                raise MCPError(types.REQUEST_TIMEOUT, f"Request {method!r} timed out") from error
            except ValidationError:
                raise InvalidTaskError(task_id, f"the server's answer to {method} is not a result of MCP") from None
            return answer.model_dump(by_alias=True, mode="json")

        return await unless_busy(send, busy_seconds=self.busy_seconds)

    @override
    async def list(self) -> NoReturn:
        self.require_requests("tasks are listed")

    @override
    def questions(self, recheck: Callable[[str], Awaitable[None]], patience_seconds: float) -> TaskQuestions:
        return TaskQuestions(self, recheck, patience_seconds=patience_seconds)
