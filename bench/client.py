"""A lean client of revision 2026-07-28: HTTP/1.1 with keep-alive on asyncio streams, one request at a time.

httpx alone costs as much as two no-op calls of the measured server. Times are taken from the first byte written to the
last byte read; JSON is built before and parsed after.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Final, Self, cast
from urllib.parse import urlsplit

JSON = dict[str, Any]
EXTENSION: Final = "io.modelcontextprotocol/tasks"
REVISION: Final = "2026-07-28"
TERMINAL: Final = frozenset({"completed", "failed", "cancelled"})
_META: Final[JSON] = {
    "io.modelcontextprotocol/protocolVersion": REVISION,
    "io.modelcontextprotocol/clientInfo": {"name": "bench", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {"extensions": {EXTENSION: {}}},
}
_LONGEST_LINE: Final = 16 * 1024 * 1024
_ids = itertools.count(1)


class WrongAnswerError(Exception):
    """The server answered with an error, or with something that is no answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer and how long it took, in seconds."""

    status: int
    message: JSON
    seconds: float

    @property
    def result(self) -> JSON:
        """The result.

        Raises:
            WrongAnswerError: It is an error.
        """
        if self.status != 200 or "result" not in self.message:
            raise WrongAnswerError(f"HTTP {self.status}: {json.dumps(self.message)[:500]}")
        return cast(JSON, self.message["result"])


class Client:
    """One connection to a server. An async context manager.

    Args:
        url: The server's endpoint.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._path = parts.path
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port, limit=_LONGEST_LINE)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    def _request(self, method: str, params: JSON) -> bytes:
        message: JSON = {"jsonrpc": "2.0", "id": next(_ids), "method": method, "params": {"_meta": _META, **params}}
        body = json.dumps(message, separators=(",", ":")).encode()
        named = f"mcp-name: {params['name']}\r\n" if method == "tools/call" else ""
        head = (
            f"POST {self._path} HTTP/1.1\r\nhost: {self._host}:{self._port}\r\n"
            "accept: application/json, text/event-stream\r\ncontent-type: application/json\r\n"
            f"mcp-protocol-version: {REVISION}\r\nmcp-method: {method}\r\n{named}content-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    async def _head(self) -> tuple[int, dict[str, str]]:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.split(":", 1) for line in head[1:] if line)
        return int(head[0].split(" ", 2)[1]), {name.lower(): value.strip() for name, value in pairs}

    async def _chunks(self, headers: dict[str, str]) -> AsyncGenerator[bytes]:
        if "chunked" not in headers.get("transfer-encoding", ""):
            yield await self._reader.readexactly(int(headers.get("content-length", "0")))
            return
        while True:
            size = int(await self._reader.readuntil(b"\r\n"), 16)
            chunk = await self._reader.readexactly(size + 2)
            if size == 0:
                return
            yield chunk[:-2]

    async def ask(self, method: str, params: JSON) -> Answer:
        """Send a request and read its answer, whether it comes as JSON or as the last event of a stream."""
        request = self._request(method, params)
        started = time.perf_counter()
        self._writer.write(request)
        status, headers = await self._head()
        body = b"".join([chunk async for chunk in self._chunks(headers)])
        seconds = time.perf_counter() - started
        if "text/event-stream" in headers.get("content-type", ""):
            body = [line[5:] for line in body.splitlines() if line.startswith(b"data:")][-1]
        return Answer(status, json.loads(body), seconds)

    async def call(self, tool: str, **arguments: Any) -> Answer:
        """``tools/call``."""
        return await self.ask("tools/call", {"name": tool, "arguments": arguments})

    async def submit(self, tool: str, **arguments: Any) -> tuple[str, float]:
        """Call a tool that becomes a task.

        Returns:
            The task's id, and how long the answer took.
        """
        answer = await self.call(tool, **arguments)
        if answer.result.get("resultType") != "task":
            raise WrongAnswerError(f"{tool} did not become a task: {json.dumps(answer.message)[:500]}")
        return answer.result["taskId"], answer.seconds

    async def get(self, task_id: str) -> Answer:
        """``tasks/get``."""
        return await self.ask("tasks/get", {"taskId": task_id})

    async def cancel(self, task_id: str) -> None:
        """``tasks/cancel``."""
        await self.ask("tasks/cancel", {"taskId": task_id})

    async def finish(self, task_id: str, pause_seconds: float, within_seconds: float = 120) -> JSON:
        """Ask until a task has completed.

        Args:
            task_id: The task.
            pause_seconds: How long to wait between two requests.
            within_seconds: How long to go on.

        Returns:
            The completed task.

        Raises:
            WrongAnswerError: It ended otherwise, or not in time.
        """
        deadline = time.monotonic() + within_seconds
        while True:
            task = (await self.get(task_id)).result
            if task["status"] == "completed":
                return task
            if task["status"] in TERMINAL or time.monotonic() > deadline:
                raise WrongAnswerError(f"a task ended as {json.dumps(task)[:500]}")
            await asyncio.sleep(pause_seconds)

    async def listen(self, task_id: str) -> AsyncGenerator[tuple[JSON, int]]:
        """``subscriptions/listen`` to one task; the connection is good for nothing else afterwards.

        Yields:
            Each message, and when it was read, in nanoseconds since the epoch.
        """
        self._writer.write(self._request("subscriptions/listen", {"notifications": {"taskIds": [task_id]}}))
        status, headers = await self._head()
        if status != 200 or "text/event-stream" not in headers.get("content-type", ""):
            raise WrongAnswerError(f"HTTP {status} to subscriptions/listen")
        waiting = b""
        async for chunk in self._chunks(headers):
            waiting += chunk.replace(b"\r\n", b"\n")
            while b"\n\n" in waiting:
                read_at = time.time_ns()
                event, _, waiting = waiting.partition(b"\n\n")
                for line in event.splitlines():
                    if line.startswith(b"data:"):
                        yield json.loads(line[5:]), read_at
