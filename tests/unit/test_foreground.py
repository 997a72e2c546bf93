"""Calls that are run on a worker for clients that know no tasks, with the engine's ports in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any, Final, cast

import anyio
import pytest
from mcp.server.connection import Connection
from mcp.server.context import ServerRequestContext
from mcp.server.session import ServerSession
from mcp.shared.exceptions import MCPError
from mcp_types import ClientCapabilities
from starlette.requests import Request

from mcp_celery.components.declarations import DeclaredComponents
from mcp_celery.config import TaskConfig
from mcp_celery.context import TaskContextSnapshot
from mcp_celery.engine import (
    ELICIT,
    Asking,
    Caller,
    EarlierTask,
    HeldBack,
    Idempotency,
    JobOutcome,
    JSONObject,
    Question,
    QueueMessage,
    Quota,
    Start,
    StoredTask,
    Submission,
    TaskRecord,
    TaskRef,
    now_ms,
)
from mcp_celery.engine.ids import new_task_id
from mcp_celery.errors import StoreUnavailableError, TaskNotFoundError, TooManyLookupsError
from mcp_celery.protocol.caller import caller_of_request
from mcp_celery.protocol.host import Polling, TaskHost
from mcp_celery.protocol.plain_clients.foreground import continued_task, go_on, run_on_worker
from mcp_celery.protocol.plain_clients.waiting import attend
from mcp_celery.protocol.shared_wire import TaskIdParams
from mcp_celery.protocol.v2025_11_25.handlers import CoreTasks
from mcp_celery.testing import DEFAULT_LIMITS, MemoryBackend, MemoryTaskStore
from tests.support.tiny_server import TinyServer, TinySource
from tests.support.waiting import eventually, soon

pytestmark = pytest.mark.anyio

CORE: Final = "2025-11-25"
MODERN: Final = "2026-07-28"
KEY: Final = "question-1"
FORM: Final[JSONObject] = {
    "message": "Your name?",
    "requestedSchema": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
}
ADA: Final[JSONObject] = {"action": "accept", "content": {"name": "Ada"}}
HELLO: Final[JSONObject] = {"content": [{"type": "text", "text": "Hello, Ada!"}]}

Answering = Callable[[], Awaitable[JSONObject]]


class Client:
    """A client's end of the connection.

    Args:
        answer: Gives its answer to a question.
    """

    def __init__(self, answer: Answering) -> None:
        self._answer = answer

    async def send_raw_request(self, method: str, params: Mapping[str, Any] | None, opts: Any = None) -> JSONObject:
        return await self._answer()

    async def notify(self, method: str, params: Mapping[str, Any] | None, opts: Any = None) -> None:
        raise AssertionError("nobody tells the client anything")


async def nothing() -> JSONObject:
    raise AssertionError("nobody asks the client anything")


class Store(MemoryTaskStore):
    """Says how often it was asked to keep a task, and how often it did not answer."""

    created = 0
    refused = 0

    async def create(
        self,
        record: TaskRecord,
        snapshot: TaskContextSnapshot,
        quota: Quota | None = None,
        idempotency: Idempotency | None = None,
        message: QueueMessage | None = None,
    ) -> EarlierTask | HeldBack | None:
        self.created += 1
        return await super().create(record, snapshot, quota, idempotency, message)

    async def load(self, ref: TaskRef) -> StoredTask | None:
        try:
            return await super().load(ref)
        except StoreUnavailableError:
            self.refused += 1
            raise


class Site:
    """A server whose jobs the test plays."""

    def __init__(self) -> None:
        self.backend = MemoryBackend()
        self.store = self.backend.store = Store(self.backend.bus, results=self.backend.results)
        self.config = TaskConfig(foreground="worker", ttl=600_000, input_timeout=30)
        engine = self.backend.engine(replace(DEFAULT_LIMITS, max_failed_lookups=1))
        self.host = TaskHost(
            engine=lambda: engine,
            components=DeclaredComponents(TinySource(TinyServer("site")), {}, self.config),
            foreground="server",
            header_names=frozenset(),
            max_listen_tasks=1,
            max_push_bytes=262_144,
        )

    def request(
        self, revision: str, answer: Answering = nothing, *, session_id: str | None = None
    ) -> ServerRequestContext[Any, Any]:
        client: Any = Client(answer)
        connection = Connection.for_loop(client, session_id=session_id)
        connection.client_capabilities = ClientCapabilities.model_validate({"elicitation": {}})
        session = ServerSession(client, connection)
        return ServerRequestContext(
            session=session, lifespan_context=None, request_id=1, protocol_version=revision, method="tools/call"
        )

    def run(self, ctx: ServerRequestContext[Any, Any]) -> asyncio.Task[Any]:
        """Call the tool."""
        return asyncio.create_task(cast(Any, run_on_worker(self.host, ctx, self.submission(ctx))))

    def submission(self, ctx: ServerRequestContext[Any, Any]) -> Submission:
        """The call."""
        return Submission(
            caller=Caller(),
            task_type="tool",
            component="greet",
            config=self.config,
            snapshot=TaskContextSnapshot(protocol_version=ctx.protocol_version),
        )

    def again(self, ctx: ServerRequestContext[Any, Any], state: str) -> asyncio.Task[Any]:
        """Call the tool again, with the answer to its question."""
        task_id = continued_task(state)
        assert task_id is not None
        return asyncio.create_task(cast(Any, go_on(self.host, ctx, self.config, task_id, {KEY: ADA})))

    async def job(self) -> TaskRecord:
        """The job of the call, which has begun."""
        await eventually(lambda: self.backend.queue.published, what="the job is published")
        record = self.backend.queue.published[-1][0]
        assert await self.backend.store.start(record.ref, Start(attempt=1, retries=0, at_ms=now_ms()))
        return record

    async def ask(self, record: TaskRecord) -> None:
        """Let the job ask its question."""
        assert await self.backend.store.ask(record.ref, Question(KEY, ELICIT, FORM), Asking(attempt=1, at_ms=now_ms()))

    async def answered(self, record: TaskRecord) -> None:
        """Wait for the answer to it."""

        async def is_answered() -> bool:
            return not isinstance(await self.backend.store.heard(record.ref, KEY, attempt=1), bool)

        await eventually(is_answered, what="the tool gets its answer")

    async def left_ms(self, record: TaskRecord) -> int:
        """How long its task still lives."""
        stored = await self.store.load(record.ref)
        assert stored is not None
        return stored.record.expires_at_ms - now_ms()

    def end(self, record: TaskRecord) -> None:
        """Let the job end with its result."""
        self.backend.results.put(record.job_id, "SUCCESS", JobOutcome(HELLO))
        self.backend.bus.tell(record.ref)


@pytest.fixture
def site() -> Site:
    return Site()


# --- Leaving


async def is_cancelled(site: Site, job: TaskRecord) -> None:
    stored = await site.backend.store.load(job.ref)
    assert stored is not None
    assert stored.record.status == "cancelled"
    assert job.job_id in site.backend.queue.revoked


async def test_a_client_that_leaves_while_the_store_is_away_cancels_the_job_when_it_is_back(site: Site) -> None:
    calling = site.run(site.request(CORE))
    job = await site.job()
    await eventually(lambda: site.backend.bus.followers, what="the server waits")
    site.backend.store.ledger.fail()
    calling.cancel()
    await eventually(lambda: site.store.refused, what="the job cannot be cancelled")
    site.backend.store.ledger.recover()
    with pytest.raises(asyncio.CancelledError):
        await soon(calling)
    await is_cancelled(site, job)


@pytest.mark.parametrize("after", [0, 8])
@pytest.mark.parametrize("leaves", ["cancels", "drops"])
async def test_a_client_that_leaves_before_its_job_is_published_leaves_none(
    site: Site, after: float, leaves: str
) -> None:
    site.host.polling = Polling(after=after, prefix="")
    site.backend.queue.hold()
    ctx = site.request(CORE, session_id="session-1")
    has_left = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await has_left.wait()
        return {"type": "http.disconnect"}

    ctx = replace(ctx, request=Request({"type": "http"}, receive))
    refused: list[int] = []
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:

            async def call() -> None:
                try:
                    await run_on_worker(site.host, ctx, site.submission(ctx))
                except MCPError as error:
                    refused.append(error.code)

            group.start_soon(call)
            await eventually(lambda: site.store.created, what="the job is on its way")
            if leaves == "drops":
                has_left.set()
            else:
                scope.cancel()
            site.backend.queue.release()
    ((job, _submission),) = site.backend.queue.published
    await is_cancelled(site, job)
    assert refused == ([-32800] if leaves == "drops" else [])


# --- Questions


async def test_the_time_that_a_client_takes_to_answer_does_not_count(site: Site) -> None:
    site.host.polling = Polling(after=1.5, prefix="")

    async def slowly() -> JSONObject:
        await asyncio.sleep(1.6)
        return ADA

    calling = site.run(site.request(CORE, slowly))
    job = await site.job()
    await site.ask(job)
    await site.answered(job)
    # The server goes on waiting.
    done, _waiting = await asyncio.wait([calling], timeout=0.2)
    assert not done
    site.end(job)
    assert await soon(calling) == HELLO


@pytest.mark.parametrize("polling", [None, Polling(after=8, prefix="")], ids=["", "polling"])
async def test_a_job_whose_client_does_not_come_back_with_answers_goes_when_its_questions_are_too_old(
    site: Site, polling: Polling | None
) -> None:
    site.host.polling = polling
    ctx = site.request(MODERN)
    calling = site.run(ctx)
    job = await site.job()
    await site.ask(job)
    state = (await soon(calling))["requestState"]
    assert await site.left_ms(job) <= 30_000
    calling = site.again(ctx, state)
    await site.answered(job)
    assert await site.left_ms(job) > (80_000_000 if polling is None else 500_000)
    site.end(job)
    assert await soon(calling) == HELLO


async def test_a_client_that_returns_too_late_gets_an_error(site: Site) -> None:
    site.config = replace(site.config, input_timeout=0.05)
    ctx = site.request(MODERN)
    calling = site.run(ctx)
    job = await site.job()
    await site.ask(job)
    state = (await soon(calling))["requestState"]

    async def is_gone() -> bool:
        return await site.store.load(job.ref) is None

    await eventually(is_gone, what="the task is given up")
    with pytest.raises(MCPError, match="its questions were not answered in time"):
        await soon(site.again(ctx, state))


async def test_a_caller_above_the_limit_of_lookups_continues_its_own_call(site: Site) -> None:
    ctx = site.request(MODERN)
    calling = site.run(ctx)
    job = await site.job()
    await site.ask(job)
    state = (await soon(calling))["requestState"]
    with pytest.raises(TaskNotFoundError):
        await site.host.engine().find(caller_of_request(ctx), new_task_id())
    with pytest.raises(TooManyLookupsError):
        await site.host.engine().find(caller_of_request(ctx), job.task_id)
    calling = site.again(ctx, state)
    await site.answered(job)
    site.end(job)
    assert await soon(calling) == HELLO


@pytest.mark.parametrize("other", ["task_result", "tasks/result"])
async def test_a_question_is_asked_once_however_many_requests_wait(site: Site, other: str) -> None:
    asked = 0
    may_answer = asyncio.Event()

    async def ada() -> JSONObject:
        nonlocal asked
        asked += 1
        await may_answer.wait()
        return ADA

    core = CoreTasks(site.host)
    site.host.polling = Polling(after=0, prefix="")
    ctx = site.request(CORE, ada)
    await site.run(ctx)
    job = await site.job()
    waits: list[Coroutine[Any, Any, Any]] = [attend(site.host, ctx, Caller(), job.task_id)]
    if other == "task_result":
        waits.append(attend(site.host, ctx, Caller(), job.task_id))
    else:
        waits.append(core.result(ctx, TaskIdParams.model_validate({"taskId": job.task_id})))
    waiting = asyncio.gather(*waits)
    await eventually(lambda: site.backend.bus.followers == 2, what="both wait")
    await site.ask(job)
    await eventually(lambda: asking() == 2, what="both would ask")
    await eventually(lambda: asked)
    may_answer.set()
    await site.answered(job)
    site.end(job)
    await soon(waiting)
    assert asked == 1


def asking() -> int:
    return sum(task.get_name().startswith("mcp-celery-ask") for task in asyncio.all_tasks())
