"""Raw HTTP against a server of revision 2026-07-28: what is on the wire, seen without a client library."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import httpx2

EXTENSION = "io.modelcontextprotocol/tasks"
REVISION = "2026-07-28"
NAMED_BY = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
JSON = dict[str, Any]

_ids = itertools.count(1)


@dataclass(frozen=True)
class Answer:
    """One answer: the HTTP status, and the JSON-RPC message."""

    status: int
    message: JSON

    @property
    def result(self) -> JSON:
        assert "result" in self.message, self.message
        return cast(JSON, self.message["result"])

    @property
    def error(self) -> JSON:
        assert "error" in self.message, self.message
        return cast(JSON, self.message["error"])


@dataclass
class Wire:
    """A client of one server.

    Args:
        url: The server's endpoint.
        extension: Whether each request declares the tasks extension.
        token: Bearer token, None for none.
        headers: Sent with each request.
        meta: Further ``_meta`` of each request.
        capabilities: What else each request declares of the client.
        timeout_seconds: How long an answer may take.
        connections: How many connections it has, None for one for each request.
        transport: In place of connections, for an app in this process.
    """

    url: str
    extension: bool = True
    token: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    meta: Mapping[str, Any] = field(default_factory=dict[str, Any])
    capabilities: Mapping[str, Any] = field(default_factory=dict[str, Any])
    timeout_seconds: float = 30
    connections: int | None = 100
    transport: httpx2.AsyncBaseTransport | None = None
    _http: httpx2.AsyncClient = field(init=False)

    async def __aenter__(self) -> Wire:
        limits = httpx2.Limits(max_connections=self.connections)
        self._http = httpx2.AsyncClient(timeout=self.timeout_seconds, limits=limits, transport=self.transport)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    def _request(self, method: str, params: JSON, headers: Mapping[str, str]) -> tuple[JSON, dict[str, str]]:
        extensions: JSON = {EXTENSION: {}} if self.extension else {}
        meta = {
            "io.modelcontextprotocol/protocolVersion": REVISION,
            "io.modelcontextprotocol/clientInfo": {"name": "wire", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {**self.capabilities, "extensions": extensions},
            **self.meta,
        }
        body = {"jsonrpc": "2.0", "id": next(_ids), "method": method, "params": {"_meta": meta, **params}}
        sent = {
            "accept": "application/json, text/event-stream",
            "content-type": "application/json",
            "mcp-protocol-version": REVISION,
            "mcp-method": method,
            **self.headers,
            **headers,
        }
        if method in NAMED_BY:
            sent["mcp-name"] = str(params[NAMED_BY[method]])
        if self.token is not None:
            sent["authorization"] = f"Bearer {self.token}"
        return body, sent

    async def post(self, method: str, params: JSON | None = None, **headers: str) -> httpx2.Response:
        """Send a request."""
        body, sent = self._request(method, params or {}, {name.replace("_", "-"): v for name, v in headers.items()})
        return await self._http.post(self.url, json=body, headers=sent)

    async def ask(self, method: str, params: JSON | None = None, **headers: str) -> Answer:
        """Send a request and read its answer, as JSON or as the last event of a stream."""
        response = await self.post(method, params, **headers)
        if "text/event-stream" in response.headers.get("content-type", ""):
            events = [json.loads(line[5:]) for line in response.text.splitlines() if line.startswith("data:")]
            return Answer(response.status_code, events[-1])
        return Answer(response.status_code, response.json())

    async def call(self, tool: str, **arguments: Any) -> Answer:
        """``tools/call``."""
        return await self.ask("tools/call", {"name": tool, "arguments": arguments})

    async def create(self, tool: str, **arguments: Any) -> JSON:
        """Call a tool that becomes a task.

        Returns:
            The ``CreateTaskResult``.
        """
        created = (await self.call(tool, **arguments)).result
        assert created["resultType"] == "task", created
        return created

    async def get(self, task_id: str) -> JSON:
        """``tasks/get`` of a task that is there."""
        return (await self.ask("tasks/get", {"taskId": task_id})).result

    async def update(self, task_id: str, responses: JSON) -> Answer:
        """``tasks/update``."""
        return await self.ask("tasks/update", {"taskId": task_id, "inputResponses": responses})

    @asynccontextmanager
    async def listen(self, task_ids: list[str], **kinds: Any) -> AsyncGenerator[AsyncGenerator[JSON]]:
        """``subscriptions/listen``: the notifications of the stream, the acknowledgement first."""
        params = {"notifications": {"taskIds": task_ids, **kinds}}
        body, sent = self._request("subscriptions/listen", params, {})
        async with self._http.stream("POST", self.url, json=body, headers=sent) as response:
            if "text/event-stream" not in response.headers.get("content-type", ""):
                raise AssertionError(json.loads(await response.aread()))
            yield _events(response, body["id"])


async def _events(response: httpx2.Response, request_id: int) -> AsyncGenerator[JSON]:
    async for line in response.aiter_lines():
        if line.startswith("data:") and line[5:].strip():
            message = cast(JSON, json.loads(line[5:]))
            if message.get("id") == request_id:
                raise AssertionError(message)
            yield message


async def follow(wire: Wire, task_id: str, began: asyncio.Event | None = None) -> list[JSON]:
    """The states of a task as they are pushed, from the current one to the last.

    Args:
        wire: The client.
        task_id: The task.
        began: Set when the first state has come.
    """
    seen: list[JSON] = []
    async with wire.listen([task_id]) as events:
        async for event in events:
            if event["method"] == "notifications/tasks":
                seen.append(event["params"])
                if began is not None:
                    began.set()
                if event["params"]["status"] in ("completed", "failed", "cancelled"):
                    return seen
    raise AssertionError("the stream ended before the task")
