"""A server in the test's own process, whose jobs run in real workers, and what a test says to it."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import redis
from celery import Celery
from mcp.client import Client

from mcp_celery import Settings, TaskConfig, TaskContextSnapshot, TaskServer
from mcp_celery.broker.naming import job_name
from mcp_celery.broker.queue import CeleryQueue
from mcp_celery.engine import Caller, JSONObject, Submission, TaskEngine, TaskRecord, TaskView
from mcp_celery.sealing import MessageSigner
from mcp_celery.server.celery_tasks import CeleryTasks
from mcp_celery.server.task_server import tasks_of
from mcp_celery.store.keys import RedisKeys
from tests.support.waiting import eventually, soon

REVISION = "2026-07-28"
ANYONE = Caller()
JOB_SECONDS = 120.0


@dataclass
class Gate:
    """Holds jobs until it is opened, and knows which have arrived. Jobs find it by its folder."""

    folder: Path

    def __str__(self) -> str:
        return str(self.folder)

    def arrived(self) -> list[int]:
        """The processes of the jobs that are here, one for each job."""
        path = self.folder / "arrived"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def cancelled(self) -> bool:
        return (self.folder / "cancelled").exists()

    def notes(self, name: str) -> list[str]:
        """What the jobs have noted."""
        path = self.folder / name
        return path.read_text().split() if path.exists() else []

    async def reached(self, jobs: int = 1) -> list[int]:
        await eventually(lambda: len(self.arrived()) >= jobs, what=f"{jobs} jobs at the gate", seconds=JOB_SECONDS)
        return self.arrived()

    def open(self) -> None:
        (self.folder / "opened").touch()


@dataclass
class LiveServer:
    """A server that runs in this process and publishes to real workers."""

    server: TaskServer
    settings: Settings
    app: Celery
    tasks: CeleryTasks

    @property
    def engine(self) -> TaskEngine:
        return self.tasks.engine()

    @property
    def keys(self) -> RedisKeys:
        return RedisKeys(self.settings.key_prefix, self.tasks.namespace)

    def job_name(self, tool: str) -> str:
        return job_name(self.tasks.namespace, "tool", tool)

    def submission(
        self,
        tool: str,
        arguments: JSONObject | None = None,
        *,
        config: TaskConfig | None = None,
        caller: Caller = ANYONE,
        snapshot: TaskContextSnapshot | None = None,
    ) -> Submission:
        snapshot = snapshot or TaskContextSnapshot(protocol_version=REVISION, request_id="request-1")
        return Submission(
            caller=caller,
            task_type="tool",
            component=tool,
            config=config or self.tasks.config("tool", tool)[1],
            snapshot=replace(snapshot, params={"name": tool, "arguments": arguments or {}}),
        )

    async def submit(self, tool: str, arguments: JSONObject | None = None, **options: Any) -> TaskRecord:
        return await soon(self.engine.submit(self.submission(tool, arguments, **options)))

    async def end_of(self, record: TaskRecord) -> TaskView:
        return await soon(self.engine.wait(Caller(record.scope, record.issuer), record.task_id), seconds=JOB_SECONDS)

    async def run(self, tool: str, arguments: JSONObject | None = None, **options: Any) -> TaskView:
        """Submit a task and wait for its end."""
        return await self.end_of(await self.submit(tool, arguments, **options))

    async def text_of(self, tool: str, arguments: JSONObject | None = None, **options: Any) -> str:
        """The text of a task's result."""
        view = await self.run(tool, arguments, **options)
        assert view.result is not None, view.record
        return str(view.result["content"][0]["text"])

    async def structured(self, tool: str, arguments: JSONObject | None = None, **options: Any) -> JSONObject:
        """The structured content of a task's result."""
        view = await self.run(tool, arguments, **options)
        assert view.result is not None, view.record
        return view.result["structuredContent"]

    async def now(self, record: TaskRecord) -> TaskRecord:
        """The record as it is now."""
        return await self.engine.find(Caller(record.scope, record.issuer), record.task_id)

    async def becomes(self, record: TaskRecord, holds: Callable[[TaskRecord], object], what: str = "") -> TaskRecord:
        """Wait until a record is as it should be."""

        async def found() -> TaskRecord | None:
            current = await self.now(record)
            return current if holds(current) else None

        current = await eventually(found, what=what, seconds=JOB_SECONDS)
        assert current is not None
        return current

    async def publish_again(
        self, record: TaskRecord, submission: Submission, signer: MessageSigner | None = None
    ) -> None:
        """Deliver a job's message once more, signed as the server signs it or by somebody else."""
        queue = CeleryQueue(
            self.app,
            namespace=self.tasks.namespace,
            default_queue=self.tasks.queue_name,
            timeout_seconds=10,
            signer=self.tasks.connections.signer if signer is None else signer,
        )
        try:
            await queue.publish(record, submission)
        finally:
            await queue.aclose()

    def redis(self) -> redis.Redis:
        """A client of the record store."""
        return redis.Redis.from_url(self.settings.redis_url, decode_responses=True)

    @asynccontextmanager
    async def foreground(self) -> AsyncGenerator[Client]:
        """A client of the same server that knows nothing of tasks."""
        async with Client(self.server) as client:
            yield client


@contextmanager
def host_app(settings: Settings, **conf: Any) -> Generator[Celery]:
    """The Celery app of a host on the settings' broker and result backend; it never becomes the current one."""
    app = Celery("host", set_as_current=False)
    app.conf.update({**settings.celery_broker, **settings.celery_results, **conf})
    yield app
    app.close()


@asynccontextmanager
async def live_server(
    build: Callable[..., TaskServer], settings: Settings, app: Celery | None = None, **conf: Any
) -> AsyncGenerator[LiveServer]:
    """Make a server and hold its connections on this event loop.

    Args:
        build: Makes the server.
        settings: Its settings.
        app: The host's Celery app, None for one that fits the settings.
        **conf: Celery's settings of an app that is made.
    """
    with ExitStack() as stack:
        celery = stack.enter_context(host_app(settings, **conf)) if app is None else app
        server = build(celery=celery, settings=settings)
        tasks = tasks_of(server)
        async with tasks.running():
            yield LiveServer(server, settings, celery, tasks)


class EventLog:
    """Celery's events, as Flower would receive them."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    def add(self, event: dict[str, Any]) -> None:
        with self._lock:
            self._events.append(event)

    def all(self) -> list[dict[str, Any]]:
        with self._lock:
            return list(self._events)

    def kinds_of(self, job_id: str) -> list[str]:
        return [event["type"] for event in self.all() if event.get("uuid") == job_id]

    def of(self, job_id: str) -> list[dict[str, Any]]:
        return [event for event in self.all() if event.get("uuid") == job_id]


@contextmanager
def celery_events(app: Celery) -> Generator[EventLog]:
    """Receive the events of every worker of an app's broker while the block runs."""
    log = EventLog()
    listening = threading.Event()

    def hear(event: dict[str, Any]) -> None:
        listening.set()
        log.add(event)

    with app.connection_for_read() as connection:
        receiver: Any = app.events.Receiver(connection, handlers={"*": hear})
        # It asks the workers for a sign of life as soon as it listens, and that is an event.
        thread = threading.Thread(target=receiver.capture, kwargs={"limit": None, "timeout": None, "wakeup": True})
        thread.start()
        try:
            assert listening.wait(JOB_SECONDS), "no worker sends events"
            yield log
        finally:
            receiver.should_stop = True
            thread.join(JOB_SECONDS)
