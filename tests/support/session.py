"""A client of revision 2025-11-25 that shows the raw messages, over any transport of the SDK.

Every message about tasks is checked against the revision's JSON schema as it arrives.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, cast

import anyio
import anyio.abc
import httpx2
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage
from mcp_types import (
    METHOD_NOT_FOUND,
    ErrorData,
    JSONRPCError,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
)

from tests.support.schemas import MCP_2025_11_25, assert_valid
from tests.support.waiting import eventually, soon
from tests.support.wire import JSON, Answer

REVISION: Final = "2025-11-25"
RELATED: Final = "io.modelcontextprotocol/related-task"
TERMINAL: Final = ("completed", "failed", "cancelled")

_RESULTS: Final = {
    "initialize": "InitializeResult",
    "tools/list": "ListToolsResult",
    "tasks/get": "GetTaskResult",
    "tasks/list": "ListTasksResult",
    "tasks/cancel": "CancelTaskResult",
    "tasks/result": "GetTaskPayloadResult",
}
_REQUESTS: Final = {
    "elicitation/create": "ElicitRequest",
    "sampling/createMessage": "CreateMessageRequest",
    "roots/list": "ListRootsRequest",
}
_NOTIFICATIONS: Final = {
    "notifications/tasks/status": "TaskStatusNotification",
    "notifications/progress": "ProgressNotification",
}

Answering = Callable[[JSON], Awaitable[JSON | ErrorData]]


async def nothing_to_say(request: JSON) -> ErrorData:
    """Of a client that handles no request of the server."""
    return ErrorData(code=METHOD_NOT_FOUND, message=f"{request['method']} is not supported")


@dataclass
class Session:
    """One connection.

    Attributes:
        write: The transport's stream to the server.
        heard: Every notification so far.
        problems: What does not fit the schema.
        asked: Every request of the server so far, pings left out.
        answer_with: Gives the result of a request of the server, or an error.
        group: Where it is answered, while other messages arrive.
    """

    write: Any
    group: anyio.abc.TaskGroup
    answer_with: Answering
    heard: list[JSON] = field(default_factory=list[JSON])
    asked: list[JSON] = field(default_factory=list[JSON])
    problems: list[str] = field(default_factory=list[str])
    initialized: JSON = field(default_factory=dict[str, Any])
    _ids: Any = field(default_factory=lambda: itertools.count(1))
    _waiting: dict[int, tuple[str, asyncio.Future[Answer]]] = field(default_factory=dict[int, Any])

    async def ask(self, method: str, params: JSON | None = None, **more: Any) -> Answer:
        """Send a request and wait for its answer."""
        request_id = await self.send(method, {**(params or {}), **more})
        return await self.answer(request_id)

    async def send(self, method: str, params: JSON) -> int:
        """Send a request.

        Returns:
            Its id, for :meth:`answer`.
        """
        request_id = next(self._ids)
        self._waiting[request_id] = (method, asyncio.get_running_loop().create_future())
        await self._post(JSONRPCRequest(jsonrpc="2.0", id=request_id, method=method, params=params))
        return request_id

    async def answer(self, request_id: int) -> Answer:
        """The answer to a request; waits for it."""
        _method, answer = self._waiting[request_id]
        return await soon(answer)

    async def tell(self, method: str, params: JSON | None = None) -> None:
        """Send a notification."""
        await self._post(JSONRPCNotification(jsonrpc="2.0", method=method, params=params))

    async def _post(self, message: Any) -> None:
        await self.write.send(SessionMessage(message))

    async def call(self, tool: str, *, task: JSON | None = None, **arguments: Any) -> Answer:
        """``tools/call``, with ``task`` as a task."""
        return await self.ask(
            "tools/call", {"name": tool, "arguments": arguments, **({} if task is None else {"task": task})}
        )

    async def create(self, tool: str, **arguments: Any) -> JSON:
        """Call a tool as a task.

        Returns:
            The task.
        """
        return (await self.call(tool, task={}, **arguments)).result["task"]

    async def get(self, task_id: str) -> JSON:
        """``tasks/get`` of a task that is there."""
        return (await self.ask("tasks/get", taskId=task_id)).result

    async def result(self, task_id: str) -> Answer:
        """``tasks/result``."""
        return await self.ask("tasks/result", taskId=task_id)

    async def listed(self) -> list[JSON]:
        """The whole of ``tasks/list``, part by part."""
        answer = (await self.ask("tasks/list")).result
        tasks = answer["tasks"]
        while "nextCursor" in answer:
            answer = (await self.ask("tasks/list", cursor=answer["nextCursor"])).result
            tasks = [*tasks, *answer["tasks"]]
        return tasks

    def statuses(self, task_id: str) -> list[JSON]:
        """What was pushed of a task."""
        return [
            one["params"]
            for one in self.heard
            if one["method"] == "notifications/tasks/status" and one["params"]["taskId"] == task_id
        ]

    async def ended(self, task_id: str) -> list[JSON]:
        """Wait for a task's end to be pushed.

        Returns:
            What was pushed of it.
        """

        def end() -> bool:
            return any(one["status"] in TERMINAL for one in self.statuses(task_id))

        await eventually(end, what=f"the end of {task_id} is pushed")
        return self.statuses(task_id)

    async def read(self, stream: Any) -> None:
        async for received in stream:
            if isinstance(received, Exception):
                raise received
            message = received.message
            raw = cast(JSON, message.model_dump(by_alias=True, mode="json", exclude_unset=True))
            if isinstance(message, JSONRPCResponse | JSONRPCError):
                method, answer = self._waiting[cast(int, message.id)]
                self._check_answer(method, raw)
                answer.set_result(Answer(200, raw))
            elif isinstance(message, JSONRPCNotification):
                self._check(_NOTIFICATIONS.get(message.method), raw)
                self.heard.append(raw)
            else:
                self._check(_REQUESTS.get(message.method), raw)
                self.group.start_soon(self._reply, raw)

    async def _reply(self, raw: JSON) -> None:
        if raw["method"] == "ping":
            await self._post(JSONRPCResponse(jsonrpc="2.0", id=raw["id"], result={}))
            return
        self.asked.append(raw)
        found = await self.answer_with(raw)
        if isinstance(found, ErrorData):
            await self._post(JSONRPCError(jsonrpc="2.0", id=raw["id"], error=found))
        else:
            await self._post(JSONRPCResponse(jsonrpc="2.0", id=raw["id"], result=found))

    def _check_answer(self, method: str, raw: JSON) -> None:
        if "error" in raw:
            self._check("JSONRPCErrorResponse", raw)
            return
        self._check("CreateTaskResult" if "task" in raw["result"] else _RESULTS.get(method), raw["result"])

    def _check(self, definition: str | None, raw: JSON) -> None:
        try:
            if definition is not None:
                assert_valid(definition, raw, MCP_2025_11_25)
        except AssertionError as error:
            self.problems.append(f"{definition}: {error} in {raw}")


@asynccontextmanager
async def session_over(
    transport: AbstractAsyncContextManager[Any],
    *,
    revision: str = REVISION,
    capabilities: JSON | None = None,
    answer_with: Answering = nothing_to_say,
) -> AsyncGenerator[Session]:
    """Connect, shake hands, and read on until the block ends.

    Args:
        transport: One of the SDK's client transports.
        revision: What the client proposes.
        capabilities: What it declares.
        answer_with: How it answers the server's requests.
    """
    problems: list[str] = []
    async with transport as (read, write), anyio.create_task_group() as group:
        session = Session(write, group, answer_with, problems=problems)
        group.start_soon(session.read, read)
        hello = {
            "protocolVersion": revision,
            "capabilities": capabilities or {},
            "clientInfo": {"name": "raw", "version": "1"},
        }
        session.initialized = (await session.ask("initialize", hello)).result
        await session.tell("notifications/initialized")
        yield session
        group.cancel_scope.cancel()
    assert not problems, problems


@asynccontextmanager
async def over_http(url: str, *, token: str | None = None, **options: Any) -> AsyncGenerator[Session]:
    """A session over Streamable HTTP, as the bearer of a token."""
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60) as client,
        session_over(streamable_http_client(url, http_client=client), **options) as session,
    ):
        yield session


Connect = Callable[..., AbstractAsyncContextManager[Session]]
