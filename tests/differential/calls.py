"""Calls of tools over raw HTTP, in each revision and each way: what is on the wire, to the letter of each number."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

import httpx2

from tests.support.waiting import eventually, soon
from tests.support.wire import EXTENSION

Revision = Literal["2026-07-28", "2025-11-25"]
REVISIONS: Final[tuple[Revision, ...]] = ("2026-07-28", "2025-11-25")
JSON = dict[str, Any]
TERMINAL: Final = ("completed", "failed", "cancelled")
META: Final = "differential/odd"
_META: Final[JSON] = {META: {"__type__": "uuid", "__value__": [2**70, -0.0, 1e300, "\u2028\u0000"], "": None}}
"""What each request carries, for tools that look at it."""
END_SECONDS: Final = 30.0
"""Within which a task has ended; a failing test waits so long."""

_ids = itertools.count(1)


@dataclass(frozen=True, repr=False)
class Number:
    """A number as it is written on the wire: ``1`` is not ``1.0``."""

    text: str

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Outcome:
    """How a call ended.

    Args:
        kind: ``result`` and ``error`` of JSON-RPC; ``broken``: an answer that is no JSON-RPC message; ``lost``: none.
        content: The result, the error, or what is known of the answer.
        status: What the task's status was, None where the call made no task.
        message: Its status message.
    """

    kind: Literal["result", "error", "broken", "lost"]
    content: Any
    status: str | None = None
    message: str | None = None


NO_ANSWER: Final = "a stream without an answer"
SERVER_ERROR: Final = "HTTP 500: Internal Server Error"


def decoded(text: str) -> Any:
    """Read JSON with its numbers as they are written.

    Raises:
        ValueError: It is none; NaN and Infinity are not of JSON.
    """

    def refused(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_int=Number, parse_float=Number, parse_constant=refused)


class Caller:
    """A client of one server in one revision.

    Args:
        http: Its connections.
        url: The server's endpoint.
    """

    revision: Revision

    def __init__(self, http: httpx2.AsyncClient, url: str) -> None:
        self._http = http
        self._url = url

    async def open(self) -> None:
        """What comes before the first request."""

    async def call(self, name: str, arguments: JSON) -> Outcome:
        """Call a tool in the foreground."""
        return await self.ask("tools/call", {"name": name, "arguments": arguments})

    async def run(self, name: str, arguments: JSON) -> Outcome:
        """Call a tool as a task, and wait for its end."""
        raise NotImplementedError

    async def listed(self) -> dict[str, JSON] | None:
        """What ``tools/list`` says, by the names of the tools; None where the server cannot say it."""
        answer = await self.ask("tools/list", {})
        return {tool["name"]: tool for tool in answer.content["tools"]} if answer.kind == "result" else None

    async def ask(self, method: str, params: JSON) -> Outcome:
        """Send a request."""
        body, headers = self._request(method, params)
        try:
            response = await self._post(body, headers)
            return _outcome(response, body["id"])
        except (httpx2.HTTPError, TimeoutError) as error:
            return Outcome("lost", repr(error))

    async def _post(self, body: JSON, headers: Mapping[str, str]) -> httpx2.Response:
        sent = {"accept": "application/json, text/event-stream", "content-type": "application/json", **headers}
        return await soon(self._http.post(self._url, content=json.dumps(body), headers=sent), seconds=END_SECONDS)

    def _request(self, method: str, params: JSON) -> tuple[JSON, dict[str, str]]:
        raise NotImplementedError


def _outcome(response: httpx2.Response, request_id: int) -> Outcome:
    assert response.status_code != httpx2.codes.NOT_FOUND, f"the session has ended: {response.text}"
    texts = [response.text]
    if "text/event-stream" in response.headers.get("content-type", ""):
        # Not `splitlines`, which splits at characters that JSON text may hold, such as U+2028.
        texts = [line[5:] for line in response.text.split("\n") if line.startswith("data:") and line[5:].strip()]
    try:
        messages = [cast(JSON, decoded(text)) for text in texts]
    except ValueError:
        return Outcome("broken", f"HTTP {response.status_code}: {response.text[:1000]}")
    for message in messages:
        if message.get("id") == Number(str(request_id)):
            kind = "error" if "error" in message else "result"
            return Outcome(kind, message[kind])
    return Outcome("broken", NO_ANSWER)


class ModernCaller(Caller):
    """2026-07-28. Requests of :meth:`call` declare no extension, those of :meth:`run` that of tasks."""

    revision = "2026-07-28"

    def _request(self, method: str, params: JSON) -> tuple[JSON, dict[str, str]]:
        params = dict(params)
        extensions: JSON = {EXTENSION: {}} if params.pop("extension", False) else {}
        meta = {
            "io.modelcontextprotocol/protocolVersion": self.revision,
            "io.modelcontextprotocol/clientInfo": {"name": "differential", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {"extensions": extensions},
            **_META,
        }
        headers = {"mcp-protocol-version": self.revision, "mcp-method": method}
        if name := params.get("name"):
            headers["mcp-name"] = name
        return {"jsonrpc": "2.0", "id": next(_ids), "method": method, "params": {"_meta": meta, **params}}, headers

    async def run(self, name: str, arguments: JSON) -> Outcome:
        created = await self.ask("tools/call", {"name": name, "arguments": arguments, "extension": True})
        if created.kind != "result" or created.content.get("resultType") != "task":
            return created
        task_id = created.content["taskId"]
        seen = Outcome("lost", "never ended")

        async def ended() -> bool:
            nonlocal seen
            seen = await self.ask("tasks/get", {"taskId": task_id, "extension": True})
            return seen.kind != "result" or seen.content.get("status") in TERMINAL

        try:
            await eventually(ended, seconds=END_SECONDS)
        except AssertionError:
            return Outcome("lost", seen.content)
        if seen.kind != "result":
            return seen
        task = cast(JSON, seen.content)
        kind = "result" if "result" in task else "error"
        return Outcome(kind, task.get(kind), task["status"], task.get("statusMessage"))


class CoreCaller(Caller):
    """2025-11-25."""

    revision = "2025-11-25"
    _session: str = ""

    async def open(self) -> None:
        hello = {"protocolVersion": self.revision, "capabilities": {}, "clientInfo": {"name": "diff", "version": "1"}}
        body, headers = self._request("initialize", hello)
        response = await self._post(body, headers)
        self._session = response.headers["mcp-session-id"]
        _body, headers = self._request("notifications/initialized", {})
        await self._post({"jsonrpc": "2.0", "method": "notifications/initialized"}, headers)

    def _request(self, method: str, params: JSON) -> tuple[JSON, dict[str, str]]:
        session = {"mcp-session-id": self._session} if self._session else {}
        params = {"_meta": _META, **params}
        body: JSON = {"jsonrpc": "2.0", "id": next(_ids), "method": method, "params": params}
        return body, {"mcp-protocol-version": self.revision, **session}

    async def run(self, name: str, arguments: JSON) -> Outcome:
        created = await self.ask("tools/call", {"name": name, "arguments": arguments, "task": {}})
        if created.kind != "result" or "task" not in created.content:
            return created
        task_id = created.content["task"]["taskId"]
        result = await self.ask("tasks/result", {"taskId": task_id})
        task = await self.ask("tasks/get", {"taskId": task_id})
        if task.kind != "result":
            return task
        return Outcome(result.kind, result.content, task.content["status"], task.content.get("statusMessage"))


CALLERS: Final[Mapping[Revision, type[Caller]]] = {"2026-07-28": ModernCaller, "2025-11-25": CoreCaller}


@asynccontextmanager
async def caller(url: str, revision: Revision) -> AsyncGenerator[Caller]:
    """Connect to a server."""
    # A server that cannot answer closes the connection, and another request would meet its end.
    limits = httpx2.Limits(max_connections=16, max_keepalive_connections=0)
    async with httpx2.AsyncClient(timeout=END_SECONDS, limits=limits) as http:
        found = CALLERS[revision](http, url)
        await found.open()
        yield found
