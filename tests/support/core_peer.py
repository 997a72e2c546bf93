"""A server of revision 2025-11-25 that says what a test has it say, over a transport in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
from mcp.shared.message import SessionMessage
from mcp_types import ErrorData, JSONRPCError, JSONRPCNotification, JSONRPCRequest, JSONRPCResponse

JSON = dict[str, Any]
Handler = Callable[[JSON], Awaitable[JSON | ErrorData]]
STARTED: Final = "2026-07-28T10:00:00Z"


def core_task(task_id: str = "task-1", status: str = "working", **fields: Any) -> JSON:
    """A task as it is on the wire."""
    times = {"createdAt": STARTED, "lastUpdatedAt": STARTED}
    return {"taskId": task_id, "status": status, "ttl": 60_000, "pollInterval": 50, **times, **fields}


@dataclass
class CorePeer:
    """The server.

    Attributes:
        capabilities: What it declares.
        revision: What it answers the handshake with.
        answers: The result of each request by its method, or what makes it of its parameters; else it is not found.
        asked: Every request so far, as its method and parameters.
    """

    capabilities: JSON = field(default_factory=lambda: {"tasks": {"list": {}, "cancel": {}}})
    revision: str = "2025-11-25"
    answers: dict[str, JSON | ErrorData | Handler] = field(default_factory=dict[str, Any])
    asked: list[tuple[str, JSON]] = field(default_factory=list[tuple[str, JSON]])
    _write: Any = None
    _replies: dict[str | int, asyncio.Future[JSON]] = field(default_factory=dict[str | int, Any])

    @asynccontextmanager
    async def transport(self) -> AsyncGenerator[Any]:
        """What the client's end of it is given."""
        to_client, from_server = anyio.create_memory_object_stream[SessionMessage | Exception](100)
        to_server, from_client = anyio.create_memory_object_stream[SessionMessage](100)
        self._write = to_client
        async with to_client, from_server, to_server, from_client, anyio.create_task_group() as group:
            group.start_soon(self._serve, from_client, group)
            yield from_server, to_server
            group.cancel_scope.cancel()

    def count(self, method: str) -> int:
        """How many requests of a method there have been."""
        return sum(1 for asked, _ in self.asked if asked == method)

    async def request(self, method: str, params: JSON) -> JSON:
        """Ask the client something, and wait for its result."""
        request_id = f"server-{len(self._replies)}"
        self._replies[request_id] = asyncio.get_running_loop().create_future()
        await self._send(JSONRPCRequest(jsonrpc="2.0", id=request_id, method=method, params=params))
        return await self._replies[request_id]

    async def push(self, task: JSON) -> None:
        """Tell the client of a task."""
        await self._send(JSONRPCNotification(jsonrpc="2.0", method="notifications/tasks/status", params=task))

    async def _send(self, message: Any) -> None:
        await self._write.send(SessionMessage(message))

    async def _serve(self, stream: Any, group: Any) -> None:
        async for received in stream:
            message = received.message
            if isinstance(message, JSONRPCRequest):
                group.start_soon(self._answer, message)
            elif isinstance(message, JSONRPCResponse):
                self._replies[message.id].set_result(message.result)

    async def _answer(self, request: JSONRPCRequest) -> None:
        params = dict(request.params or {})
        self.asked.append((request.method, params))
        tool = {"inputSchema": {"type": "object"}, "execution": {"taskSupport": "optional"}}
        tools: JSON = {"tools": [{"name": "work", **tool}, {"name": "plain", "inputSchema": {"type": "object"}}]}
        unknown = ErrorData(code=-32601, message="Method not found")
        answer = self.answers.get(request.method, tools if request.method == "tools/list" else unknown)
        if request.method == "initialize":
            info = {"name": "peer", "version": "1"}
            answer = {"protocolVersion": self.revision, "capabilities": self.capabilities, "serverInfo": info}
        elif callable(answer):
            answer = await answer(params)
        # A client that has gone waits for no answer.
        with suppress(anyio.BrokenResourceError):
            if isinstance(answer, ErrorData):
                await self._send(JSONRPCError(jsonrpc="2.0", id=request.id, error=answer))
            else:
                await self._send(JSONRPCResponse(jsonrpc="2.0", id=request.id, result=answer))
