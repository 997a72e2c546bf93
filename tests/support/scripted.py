"""A server of SEP-2663 whose tasks do what the test says, for what no real server does on demand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import mcp_types as types
import uvicorn
from mcp.server import MCPServer
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.extension import Extension, MethodBinding
from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import SUBSCRIPTION_ID_META_KEY
from pydantic import ConfigDict

from tests.support.locks import reserved_port
from tests.support.waiting import eventually
from tests.support.wire import EXTENSION, JSON

Context = ServerRequestContext[Any, Any]
Fault = Exception | JSON | Callable[[], Awaitable[JSON]]
STARTED = datetime(2026, 7, 28, tzinfo=UTC)
TEXT_RESULT: JSON = {"content": [{"type": "text", "text": "done"}]}


class AnyParams(types.RequestParams):
    model_config = ConfigDict(extra="allow")


def elicitation(message: str = "Sure?", **properties: JSON) -> JSON:
    """A question for the user."""
    schema = {"type": "object", "properties": properties or {"sure": {"type": "boolean"}}}
    return {"method": "elicitation/create", "params": {"mode": "form", "message": message, "requestedSchema": schema}}


def text_of(result: types.CallToolResult) -> str:
    """A result's only text."""
    (block,) = result.content
    assert isinstance(block, types.TextContent)
    return block.text


@dataclass
class Scripted(Extension):
    """The server, and what the test does with it.

    Attributes:
        pushes: Whether `subscriptions/listen` may name tasks; None: it is not known at all.
        tells_first: Whether a stream begins with the tasks' states.
        breaking: Tasks whose state breaks the stream that is to carry it.
        makes_tasks: Whether a tool call becomes a task.
        poll_interval_ms: What each task says.
        asked: Every request so far, as its method and parameters.
        faults: By method: what the next requests are answered with, or what makes the answer.
        listening: How many `subscriptions/listen` requests are open now, those that name no task included.
        answers: What `tasks/update` brought, by task and key, every time.
    """

    pushes: bool | None = True
    tells_first: bool = True
    breaking: set[str] = field(default_factory=set[str])
    makes_tasks: bool = True
    poll_interval_ms: int | None = 60_000
    asked: list[tuple[str, JSON]] = field(default_factory=list[tuple[str, JSON]])
    faults: dict[str, list[Fault]] = field(default_factory=dict[str, list[Fault]])
    answers: dict[str, dict[str, list[JSON]]] = field(default_factory=dict[str, dict[str, list[JSON]]])
    tasks: dict[str, JSON] = field(default_factory=dict[str, JSON])
    streams: dict[asyncio.Queue[JSON | None], list[str]] = field(
        default_factory=dict[asyncio.Queue[JSON | None], list[str]]
    )
    listening: int = 0
    headers: list[dict[str, str]] = field(default_factory=list[dict[str, str]])

    identifier = EXTENSION

    def __post_init__(self) -> None:
        self.server = MCPServer("scripted", extensions=[self], middleware=[self._middleware])

        @self.server.tool(structured_output=False)
        async def work(answer: str = "in the foreground") -> str:
            return answer

    def methods(self) -> Sequence[MethodBinding]:
        return [
            MethodBinding("tasks/get", AnyParams, self._get),
            MethodBinding("tasks/cancel", AnyParams, self._cancel),
            MethodBinding("tasks/update", AnyParams, self._update),
        ]

    # -- what a test says

    def make(self, task_id: str | None = None, **fields: Any) -> str:
        """A new task that works."""
        task_id = task_id or f"task-{len(self.tasks) + 1}"
        told = {"taskId": task_id, "status": "working", "createdAt": STARTED.isoformat(), "ttlMs": None}
        self.tasks[task_id] = told | {"lastUpdatedAt": STARTED.isoformat()} | fields
        if self.poll_interval_ms is not None:
            self.tasks[task_id].setdefault("pollIntervalMs", self.poll_interval_ms)
        return task_id

    def set(self, task_id: str, status: str, *, silently: bool = False, **fields: Any) -> None:
        """Move a task on, and push that."""
        task = self.tasks[task_id]
        later = datetime.fromisoformat(task["lastUpdatedAt"]) + timedelta(milliseconds=1)
        kept = {key: task[key] for key in ("taskId", "createdAt", "ttlMs", "pollIntervalMs") if key in task}
        self.tasks[task_id] = kept | {"status": status, "lastUpdatedAt": later.isoformat()} | fields
        if not silently:
            self.push(self.tasks[task_id])

    def complete(self, task_id: str, text: str = "done", **options: Any) -> None:
        self.set(task_id, "completed", result={"content": [{"type": "text", "text": text}]}, **options)

    def ask(self, task_id: str, **questions: JSON) -> None:
        """Ask questions, in addition to those that are open."""
        still_open = self.tasks[task_id].get("inputRequests", {})
        self.set(task_id, "input_required", inputRequests={**still_open, **questions})

    def push(self, task: JSON) -> None:
        """Push something as a task to whoever listens to it."""
        for queue, task_ids in self.streams.items():
            if task.get("taskId") in task_ids:
                queue.put_nowait(task)

    def end_streams(self) -> None:
        """End every stream of pushes."""
        for queue in self.streams:
            queue.put_nowait(None)

    def count(self, method: str) -> int:
        """How many requests of a method there have been."""
        return sum(1 for asked, _ in self.asked if asked == method)

    async def listened(self, *task_ids: str) -> None:
        """Wait until somebody listens to tasks."""
        await eventually(
            lambda: any(set(task_ids) <= set(named) for named in self.streams.values()), what=f"a stream of {task_ids}"
        )

    async def made(self, number: int = 1) -> str:
        """Wait for the n-th task, and give its id."""
        await eventually(lambda: len(self.tasks) >= number, what=f"{number} tasks")
        return list(self.tasks)[number - 1]

    @asynccontextmanager
    async def http(self) -> AsyncGenerator[HttpServer]:
        """Serve over HTTP, on this event loop."""
        with reserved_port() as port:
            server = HttpServer(self.server, port)
            await server.start()
            try:
                yield server
            finally:
                await server.stop()

    # -- what a client asks

    async def intercept_tool_call(
        self, params: types.CallToolRequestParams, ctx: Context, call_next: CallNext
    ) -> HandlerResult:
        if not self.makes_tasks:
            return await call_next(ctx)
        return {"resultType": "task", **self.tasks[self.make()]}

    def _task(self, params: Any) -> JSON:
        task_id = params.model_extra["taskId"]
        if task_id not in self.tasks:
            raise MCPError(types.INVALID_PARAMS, "Task not found")
        return self.tasks[task_id]

    async def _get(self, _ctx: Context, params: AnyParams) -> HandlerResult:
        return dict(self._task(params))

    async def _cancel(self, _ctx: Context, params: AnyParams) -> HandlerResult:
        task = self._task(params)
        if task["status"] not in ("completed", "failed", "cancelled"):
            self.set(task["taskId"], "cancelled", statusMessage="by request")
        return {}

    async def _update(self, _ctx: Context, params: AnyParams) -> HandlerResult:
        task = self._task(params)
        responses: JSON = (params.model_extra or {})["inputResponses"]
        for key, response in responses.items():
            self.answers.setdefault(task["taskId"], {}).setdefault(key, []).append(response)
        if task["status"] == "input_required":
            rest = {key: asked for key, asked in task["inputRequests"].items() if key not in responses}
            if rest:
                self.set(task["taskId"], "input_required", inputRequests=rest)
            else:
                self.set(task["taskId"], "working")
        return {}

    async def _middleware(self, ctx: Context, call_next: CallNext) -> HandlerResult:
        self.asked.append((ctx.method, dict(ctx.params or {})))
        self.headers.append(dict(getattr(ctx.request, "headers", None) or {}))
        if waiting := self.faults.get(ctx.method):
            fault = waiting.pop(0)
            if isinstance(fault, Exception):
                raise fault
            return await fault() if callable(fault) else fault
        if ctx.method != "subscriptions/listen":
            return await call_next(ctx)
        self.listening += 1
        try:
            return await self._listen(ctx, call_next)
        finally:
            self.listening -= 1

    async def _listen(self, ctx: Context, call_next: CallNext) -> HandlerResult:
        named = (ctx.params or {}).get("notifications", {}).get("taskIds")
        if named is None or self.pushes is False:
            return await call_next(ctx)
        if self.pushes is None:
            raise MCPError(types.METHOD_NOT_FOUND, "Method not found")
        return await self._stream(ctx, [task_id for task_id in named if task_id in self.tasks])

    async def _stream(self, ctx: Context, task_ids: list[str]) -> HandlerResult:
        stamp = {"_meta": {SUBSCRIPTION_ID_META_KEY: ctx.request_id}}
        await _notify(
            ctx, "notifications/subscriptions/acknowledged", {"notifications": {"taskIds": task_ids}, **stamp}
        )
        with self._queue(task_ids) as queue:
            if self.tells_first:
                for task_id in task_ids:
                    queue.put_nowait(self.tasks[task_id])
            while (task := await queue.get()) is not None:
                if task.get("taskId") in self.breaking:
                    raise MCPError(types.INTERNAL_ERROR, "the stream broke")
                await _notify(
                    ctx, "notifications/tasks", {**task, "_meta": {**task.get("_meta", {}), **stamp["_meta"]}}
                )
        return {"resultType": "complete", **stamp}

    @contextmanager
    def _queue(self, task_ids: list[str]) -> Generator[asyncio.Queue[JSON | None]]:
        queue = asyncio.Queue[JSON | None]()
        self.streams[queue] = task_ids
        try:
            yield queue
        finally:
            del self.streams[queue]

    def __hash__(self) -> int:
        return id(self)


async def _notify(ctx: Context, method: str, params: JSON) -> None:
    notification: Any = types.Notification[JSON, str](method=method, params=params)
    await ctx.session.send_notification(notification, ctx.request_id)


class _QuietServer(uvicorn.Server):
    """Leaves the signals to the test's process."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


class HttpServer:
    """The scripted server over HTTP; it can be stopped and started again on the same port."""

    def __init__(self, server: MCPServer, port: int) -> None:
        self._app: Callable[[], Any] = lambda: server.streamable_http_app(streamable_http_path="/mcp", host="127.0.0.1")
        self._port = port
        self._running: tuple[_QuietServer, asyncio.Task[None]] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/mcp"

    async def start(self) -> None:
        config = uvicorn.Config(
            self._app(), port=self._port, log_level="error", timeout_graceful_shutdown=0, ws="none", lifespan="on"
        )
        server = _QuietServer(config)
        self._running = server, asyncio.create_task(server.serve())
        await eventually(lambda: server.started, what="the server listens")

    async def stop(self) -> None:
        if self._running:
            server, serving = self._running
            self._running = None
            server.should_exit = True
            with anyio.CancelScope(shield=True):
                await serving
