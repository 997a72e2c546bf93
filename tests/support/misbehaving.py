"""An HTTP server of both revisions, on a real socket, that spoils one kind of message in one way, again and again.

It has two tools: ``healthy`` makes a task about which it always tells the truth, and ``faulty`` one of whose messages
it spoils those of one kind.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from mcp.shared.subscriptions import SUBSCRIPTION_ID_META_KEY

from tests.support.wire import EXTENSION, JSON

Revision = Literal["2025-11-25", "2026-07-28"]
Fault = Literal["breaks", "ends", "stalls", "repeats", "truncates", "oversizes", "garbles"]

INTERVAL_MS: Final = 100
REPEATS: Final = 500
STARTED: Final = "2026-07-28T00:00:00+00:00"
MOST_SENT: Final = 64 * 1024 * 1024
"""Where even an endless answer ends, so that a client that would read it all fails the test, and not the machine."""
ACKNOWLEDGEMENT: Final = "notifications/subscriptions/acknowledged"
PUSH: Final = "notifications/tasks"
STATUS: Final = "notifications/tasks/status"


@dataclass
class MisbehavingServer:
    """The server.

    Attributes:
        revision: Which revision it speaks.
        kind: The method of the messages that it spoils; of a request: its answer.
        fault: How.
        mends: Whether it spoils the first message of the kind alone.
        forgets: Whether it knows no session any more, as after a restart.
        spoiled: How many messages it has spoiled.
        asked: How many requests and notifications there were, by their methods; ``GET`` for the session's channel.
        sent: How many bytes of each endless message the client has accepted.
    """

    revision: Revision
    kind: str
    fault: Fault
    mends: bool = False
    forgets: bool = False
    spoiled: int = 0
    asked: Counter[str] = field(default_factory=Counter[str])
    sent: list[int] = field(default_factory=list[int])
    tasks: dict[str, JSON] = field(default_factory=dict[str, JSON])
    _channels: dict[asyncio.Queue[str], list[str]] = field(default_factory=dict[asyncio.Queue[str], list[str]])
    _open: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])

    @asynccontextmanager
    async def listening(self) -> AsyncGenerator[str]:
        """Serve on this event loop; gives the URL."""
        async with await asyncio.start_server(self._accept, "127.0.0.1", 0) as server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp"
            for connection in self._open:
                connection.cancel()
            await asyncio.gather(*self._open, return_exceptions=True)

    def complete(self, task_id: str) -> None:
        """End a task with its name as the result, and push that."""
        self.tasks[task_id] |= {"status": "completed", "result": {"content": [{"type": "text", "text": task_id}]}}
        self.tasks[task_id].pop("inputRequests", None)
        self._push(task_id)

    def _push(self, task_id: str) -> None:
        for queue, task_ids in self._channels.items():
            if task_id in task_ids:
                queue.put_nowait(task_id)

    # -- HTTP

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._open.add(task)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            verb = head.split(" ", 1)[0]
            length = next((line[15:] for line in head.lower().split("\r\n") if line.startswith("content-length:")), "0")
            body = await reader.readexactly(int(length))
            if verb == "POST":
                await self._receive(json.loads(body), reader, writer)
            elif verb == "GET":
                self.asked["GET"] += 1
                await self._channel(_Answer(reader, writer, as_stream=True), None, STATUS, list(self.tasks))
            else:
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()
        self._open.discard(task)

    async def _receive(self, message: JSON, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method: str = message.get("method", "answer")
        params: JSON = message.get("params") or {}
        self.asked[method] += 1
        if "id" not in message or "method" not in message:
            writer.write(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            return
        if self.forgets:
            error = {"code": -32600, "message": "Session not found"}
            refused = json.dumps({"jsonrpc": "2.0", "id": None, "error": error})
            head = f"HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\ncontent-length: {len(refused)}\r\n"
            writer.write(f"{head}connection: close\r\n\r\n{refused}".encode())
            return
        if method == "subscriptions/listen":
            named = [task_id for task_id in params["notifications"]["taskIds"] if self._is_pushed(task_id)]
            await self._channel(_Answer(reader, writer, as_stream=True), message["id"], PUSH, named)
            return
        answer = _Answer(reader, writer, as_stream=self.revision == "2025-11-25")
        reply: JSON = {"jsonrpc": "2.0", "id": message["id"]}
        result = self._result(method, params)
        reply |= {"error": {"code": -32601, "message": method}} if result is None else {"result": result}
        if self._is_spoiled(method, params):
            await self._spoil(answer, reply)
        else:
            await answer.send(reply)
        await answer.end()

    def _is_pushed(self, task_id: str) -> bool:
        """A task whose answers are spoiled is asked for, so none of its states is pushed."""
        return task_id in self.tasks and (task_id != "faulty" or self.kind in (ACKNOWLEDGEMENT, PUSH))

    async def _channel(self, answer: _Answer, listen_id: str | None, method: str, task_ids: list[str]) -> None:
        """Push states until the client goes, of all tasks on the channel of a session."""
        stamp = {"_meta": {SUBSCRIPTION_ID_META_KEY: listen_id}}
        queue: asyncio.Queue[str] = asyncio.Queue()
        self._channels[queue] = ["healthy", "faulty"] if listen_id is None else task_ids
        try:
            if listen_id is not None:
                acknowledged = {"notifications": {"taskIds": task_ids}, **stamp}
                await self._notify(answer, ACKNOWLEDGEMENT, acknowledged, spoils="faulty" in self.tasks)
            for task_id in task_ids:
                queue.put_nowait(task_id)
            await answer.send()
            while task_id := await answer.unless_left(queue.get()):
                await self._notify(answer, method, self._told(task_id, method) | stamp, spoils=task_id == "faulty")
        finally:
            del self._channels[queue]

    async def _notify(self, answer: _Answer, method: str, params: JSON, *, spoils: bool) -> None:
        event = {"jsonrpc": "2.0", "method": method, "params": params}
        if spoils and method == self.kind:
            await self._spoil(answer, event)
        else:
            await answer.send(event)

    # -- what goes wrong

    def _is_spoiled(self, method: str, params: JSON) -> bool:
        names = {params.get("name"), params.get("taskId")}
        is_spared = "healthy" in names or (method == "tools/list" and self.asked[method] == 1)
        return method == self.kind and not is_spared and not (self.mends and self.spoiled)

    async def _spoil(self, answer: _Answer, message: JSON) -> None:
        self.spoiled += 1
        match self.fault:
            case "breaks":
                raise ConnectionResetError
            case "ends":
                await answer.send()
                await answer.end()
                raise ConnectionResetError
            case "stalls":
                await answer.left()
                raise ConnectionResetError
            case "repeats":
                await answer.send(*[message] * REPEATS)
            case "truncates":
                await answer.cut(message)
            case "oversizes":
                self.sent.append(0)
                async for count in answer.send_without_end(message):
                    self.sent[-1] = count
            case "garbles":
                what = {"result": {"task": {"taskId": 7}, "tools": 7, "tasks": 7, "status": "paused"}}
                await answer.send({**message, **(what if "id" in message else {"params": {"taskId": 7}})})

    # -- what it says

    def _result(self, method: str, params: JSON) -> JSON | None:
        task_id = str(params.get("name") or params.get("taskId"))
        answers: dict[str, Callable[[], JSON]] = {
            "tools/list": self._tools,
            "tools/call": lambda: self._created(task_id),
            "tasks/get": lambda: self._complete(self._told(task_id, method)),
            "tasks/update": lambda: self._ended(task_id, method),
            "tasks/cancel": lambda: self._ended(task_id, method),
        }
        if self.revision == "2025-11-25":
            answers |= {"initialize": self._initialized, "tasks/list": self._listed}
            answers["tasks/result"] = lambda: self.tasks[task_id]["result"]
        else:
            answers["server/discover"] = self._discovered
        return answers[method]() if method in answers else None

    def _complete(self, result: JSON) -> JSON:
        return result if self.revision == "2025-11-25" else {"resultType": "complete", **result}

    def _discovered(self) -> JSON:
        capabilities: JSON = {"tools": {}, "extensions": {EXTENSION: {}}}
        found = {"supportedVersions": [self.revision], "ttlMs": 0, "cacheScope": "private"}
        return self._complete(found | {"capabilities": capabilities})

    def _initialized(self) -> JSON:
        tasks: JSON = {"list": {}, "cancel": {}, "requests": {"tools": {"call": {}}}}
        info = {"name": "misbehaving", "version": "1"}
        return {"protocolVersion": self.revision, "capabilities": {"tools": {}, "tasks": tasks}, "serverInfo": info}

    def _tools(self) -> JSON:
        # The faulty tool is on the second list alone, so that it has to be looked for.
        names = ["healthy"] if self.asked["tools/list"] == 1 else ["healthy", "faulty"]
        execution = {"inputSchema": {"type": "object"}, "execution": {"taskSupport": "optional"}}
        return self._complete({"tools": [{"name": name, **execution} for name in names], **self._next("tools/list")})

    def _listed(self) -> JSON:
        return {"tasks": [self._told(task_id, "tasks/list") for task_id in self.tasks], **self._next("tasks/list")}

    def _next(self, method: str) -> JSON:
        return {"nextCursor": "again"} if (self.kind, self.fault) == (method, "repeats") else {}

    def _ended(self, task_id: str, method: str) -> JSON:
        if method != self.kind:  # else what the client asks is lost
            self.complete(task_id)
        return self._complete(self._told(task_id, method))

    def _created(self, task_id: str) -> JSON:
        times = {"createdAt": STARTED, "lastUpdatedAt": STARTED}
        intervals = {"pollInterval": INTERVAL_MS, "pollIntervalMs": INTERVAL_MS, "ttl": None, "ttlMs": None}
        self.tasks[task_id] = {"taskId": task_id, "status": "working", **times, **intervals}
        if self.kind == "tasks/update" and task_id == "faulty":
            schema = {"type": "object", "properties": {"sure": {"type": "boolean"}}}
            question = {"mode": "form", "message": "Sure?", "requestedSchema": schema}
            asks = {"inputRequests": {"sure": {"method": "elicitation/create", "params": question}}}
            self.tasks[task_id] |= {"status": "input_required", **asks}
        self._push(task_id)
        if self.revision == "2025-11-25":
            return {"task": self.tasks[task_id]}
        return {"resultType": "task", **self.tasks[task_id]}

    def _told(self, task_id: str, method: str) -> JSON:
        """A task's state; repeated without end, that of the faulty task says falsely that it has ended."""
        told = dict(self.tasks[task_id])
        if self.revision == "2025-11-25":
            told.pop("result", None)
        if (method, self.fault, task_id) == (STATUS, "repeats", "faulty"):
            told["status"] = "completed"
        return told


class _Answer:
    """What goes out upon one request: JSON, or a stream of events."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, as_stream: bool) -> None:
        self._reader = reader
        self._writer = writer
        self._is_stream = as_stream
        self._has_begun = False
        self._leaving: asyncio.Task[None] | None = None

    async def send(self, *messages: JSON) -> None:
        await self._write(b"".join(self._framed(json.dumps(message).encode()) for message in messages))

    async def cut(self, message: JSON) -> None:
        """Send the first half, and hang up."""
        framed = self._framed(json.dumps(message).encode())
        await self._write(framed[: len(framed) // 2])
        raise ConnectionResetError

    async def send_without_end(self, message: JSON) -> AsyncGenerator[int]:
        """Send a message that begins well; gives how many bytes have gone out, until the client hangs up."""
        text = json.dumps(message).encode().removesuffix(b"}") + b', "more": "'
        await self._write(b"data: " + text if self._is_stream else text)
        for count in range(65536, MOST_SENT, 65536):
            await self._write(b"x" * 65536)
            yield count
        raise ConnectionResetError

    async def left(self) -> None:
        """Wait until the client hangs up."""
        self._leaving = self._leaving or asyncio.create_task(self._read_to_the_end())
        await asyncio.shield(self._leaving)

    async def _read_to_the_end(self) -> None:
        with suppress(ConnectionError):
            await self._reader.read()

    async def unless_left(self, waiting: Coroutine[Any, Any, str]) -> str | None:
        """Wait for something, but not longer than the client stays."""
        other, leaving = asyncio.create_task(waiting), asyncio.create_task(self.left())
        try:
            await asyncio.wait([other, leaving], return_when=asyncio.FIRST_COMPLETED)
            return other.result() if other.done() else None
        finally:
            other.cancel()
            leaving.cancel()

    async def end(self) -> None:
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()

    def _framed(self, text: bytes) -> bytes:
        return b"event: message\ndata: " + text + b"\n\n" if self._is_stream else text

    async def _write(self, part: bytes) -> None:
        if not self._has_begun:
            self._has_begun = True
            kind = b"text/event-stream" if self._is_stream else b"application/json"
            self._writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: " + kind + b"\r\nmcp-session-id: s\r\nconnection: close\r\n"
                b"transfer-encoding: chunked\r\n\r\n"
            )
            if self._is_stream:
                part = b"retry: 0\n\n" + part
        if part:
            self._writer.write(b"%x\r\n%s\r\n" % (len(part), part))
        await self._writer.drain()
