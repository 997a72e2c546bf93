"""Two worlds with one behaviour: everything the engine needs in memory, and in a real Redis."""

import json
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

from mcp_types.version import LATEST_HANDSHAKE_VERSION

from mcp_celery.config import TaskConfig
from mcp_celery.context import TaskContextSnapshot
from mcp_celery.engine import (
    Caller,
    Counter,
    JobLedger,
    Observers,
    OpenTasks,
    Quota,
    RecoveryStore,
    StoredResult,
    Submission,
    TaskBus,
    TaskEngine,
    TaskHints,
    TaskLimits,
    TaskQueue,
    TaskRecord,
    TaskRef,
    TaskResults,
    TaskStore,
    Transition,
    WebhookOutbox,
    now_ms,
    write_audit_log,
)
from mcp_celery.engine.followup_jobs import Declared, as_itself
from mcp_celery.engine.ids import new_task_id
from mcp_celery.sealing import UNSEALED
from mcp_celery.store import (
    RedisExposed,
    RedisJobLedger,
    RedisRecovery,
    RedisTaskBus,
    RedisTaskStore,
    RedisWebhooks,
    connect,
)
from mcp_celery.store.bus import SILENCE_SECONDS
from mcp_celery.store.connection import IDLE_SECONDS
from mcp_celery.store.keys import RedisKeys
from mcp_celery.testing import (
    MemoryBackend,
    MemoryOpenTasks,
    MemoryRecovery,
    MemoryTaskQueue,
    MemoryTaskResults,
    MemoryTaskStore,
    MemoryWebhooks,
)
from tests.support.leaks import admin_client, no_eternal_keys

ALICE = Caller("client-a|alice", "https://issuer.example")
SNAPSHOT = TaskContextSnapshot(
    protocol_version="2026-07-28",
    params={"name": "build_report", "arguments": {"year": 2026}},
    session_id="session-1",
    headers={"x-tenant": "acme"},
)
LIMITS = TaskLimits(default_ttl_ms=600_000, max_ttl_ms=3_600_000, poll_interval_ms=1_000, settle_interval_ms=0)
TIMEOUT_SECONDS = 10.0
"""Of calls that are meant to succeed, so that a slow machine changes no outcome."""


class World(Protocol):
    """What the engine needs, and what a test may do that only Celery or an operator could."""

    @property
    def store(self) -> TaskStore: ...
    @property
    def ledger(self) -> JobLedger: ...
    @property
    def bus(self) -> TaskBus: ...
    @property
    def results(self) -> TaskResults | None: ...
    @property
    def observers(self) -> Observers: ...
    @property
    def transitions(self) -> list[Transition]:
        """What has been reported so far."""
        ...

    def put_result(self, job_id: str, state: str, value: object) -> None:
        """Store a job's result as Celery does."""
        ...

    def forget_result(self, job_id: str) -> None:
        """Let a job's result expire."""
        ...

    def told(self, ref: TaskRef) -> int:
        """How many changes of the task have been told on the bus so far."""
        ...

    def recovery(self) -> RecoveryStore:
        """What recovery keeps, as one more process opens it."""
        ...

    def open_tasks(self) -> OpenTasks:
        """Which tasks of exposed jobs are open."""
        ...

    def outbox(self) -> WebhookOutbox:
        """The webhooks that are not delivered yet."""
        ...

    def is_due(self, ref: TaskRef) -> bool:
        """Whether the task's next leg is still to be published."""
        ...


class MemoryWorld:
    def __init__(self, *, results_apart: bool) -> None:
        self.transitions: list[Transition] = []
        self.observers = Observers(self.transitions.append, write_audit_log)
        backend = MemoryBackend()
        self._results = backend.results
        self.bus = backend.bus
        self.store = MemoryTaskStore(
            self.bus, results=None if results_apart else self._results, observers=self.observers
        )
        self.ledger = self.store.ledger
        self.results = self._results if results_apart else None

    def put_result(self, job_id: str, state: str, value: object) -> None:
        self._results.put(job_id, state, value)

    def forget_result(self, job_id: str) -> None:
        self._results.stored.pop(job_id)

    def told(self, ref: TaskRef) -> int:
        return self.bus.told.count(ref)

    def recovery(self) -> RecoveryStore:
        return MemoryRecovery(self.ledger)

    def open_tasks(self) -> OpenTasks:
        return MemoryOpenTasks(self.ledger)

    def outbox(self) -> WebhookOutbox:
        return MemoryWebhooks(self.ledger)

    def is_due(self, ref: TaskRef) -> bool:
        return ref in self.ledger.due


class RedisWorld:
    def __init__(self, url: str, *, prefix: str | None = None, results_apart: bool = False, **options: Any) -> None:
        self.transitions: list[Transition] = []
        self.observers = Observers(self.transitions.append, write_audit_log)
        self.url = url
        # In braces it is a hash tag, so that a cluster keeps all of it on one shard, results and queues too.
        self.prefix = prefix or f"{{test-{uuid.uuid4().hex}}}"
        namespace: str = options.get("namespace", "contract")
        self.keys = RedisKeys(self.prefix, namespace, is_sharded=options.get("is_sharded", False))
        self.client = admin_client(url, key=self.prefix)
        self._apart = MemoryTaskResults() if results_apart else None
        self.results = self._apart
        timeout: float = options.get("timeout_seconds", TIMEOUT_SECONDS)
        idle: float = options.get("idle_seconds", IDLE_SECONDS)
        self.store = RedisTaskStore(
            connect(
                url,
                max_connections=options.get("max_connections", 8),
                timeout_seconds=timeout,
                idle_seconds=idle,
                key=self.prefix,
            ),
            self.keys,
            result_key=None if results_apart else self._result_key,
            decode_result=None if results_apart else _decode,
            snapshots=options.get("snapshots", UNSEALED),
            observers=self.observers,
        )
        self.ledger = RedisJobLedger(
            url,
            self.keys,
            timeout_seconds=timeout,
            snapshots=options.get("snapshots", UNSEALED),
            observers=self.observers,
            idle_seconds=idle,
        )
        self.bus = RedisTaskBus(
            connect(url, max_connections=2, timeout_seconds=timeout, listens=True, key=self.prefix),
            self.keys,
            timeout_seconds=timeout,
            silence_seconds=options.get("silence_seconds", SILENCE_SECONDS),
        )

    def _result_key(self, job_id: str) -> str:
        return f"{self.prefix}:result:{job_id}"

    def put_result(self, job_id: str, state: str, value: object) -> None:
        if self._apart is not None:
            self._apart.put(job_id, state, value)
        else:
            payload = json.dumps([state, value], default=lambda outcome: outcome.__json__())
            self.client.set(self._result_key(job_id), payload, ex=60)

    def forget_result(self, job_id: str) -> None:
        if self._apart is not None:
            self._apart.stored.pop(job_id)
        else:
            self.client.delete(self._result_key(job_id))

    def record_events(self) -> None:
        """Begin to count what is told."""
        self._events: list[str] = []
        self._end = f"{self.prefix}:end"
        self._heard = self.client.pubsub()
        self._heard.psubscribe(f"{self.prefix}:contract:*", self._end)

    def told(self, ref: TaskRef) -> int:
        self.client.publish(self._end, "")
        while True:
            message = cast("dict[str, Any]", self._heard.get_message(timeout=TIMEOUT_SECONDS))
            assert message is not None
            if message["type"] != "pmessage":
                continue
            channel = cast(bytes, message["channel"]).decode()
            if channel == self._end:
                return self._events.count(self.keys.channel(ref.scope, ref.task_id))
            self._events.append(channel)

    def recovery(self) -> RedisRecovery:
        return RedisRecovery(self.store)

    def open_tasks(self) -> RedisExposed:
        return RedisExposed(self.store)

    def outbox(self) -> RedisWebhooks:
        return RedisWebhooks(self.store)

    def is_due(self, ref: TaskRef) -> bool:
        due = cast("list[bytes]", self.client.zrange(self.keys.due, 0, -1))
        return any(TaskRef.of_key(key.decode()) == ref for key in due)

    def followers(self, ref: TaskRef) -> int:
        """Connections that Redis tells of a task's changes."""
        ((_channel, count),) = cast("Any", self.client).pubsub_numsub(self.keys.channel(ref.scope, ref.task_id))
        return int(count)

    def keys_left(self) -> list[bytes]:
        return sorted(cast("list[bytes]", self.client.scan_iter(match=f"{self.prefix}:*", count=1000)))

    def tasks_keys_left(self) -> list[bytes]:
        """Without the indices, which outlive a task."""
        keys = self.keys
        indices = {index.encode() for index in (keys.expiry, keys.ended, keys.remembered, keys.unclaimed)}
        return [key for key in self.keys_left() if key not in indices]

    async def aclose(self) -> None:
        await self.bus.aclose()
        await self.store.aclose()
        self.ledger.close()
        if hasattr(self, "_heard"):
            self._heard.close()
        self.client.close()


def _decode(payload: bytes) -> StoredResult:
    state, value = json.loads(payload)
    return StoredResult(state, value)


@asynccontextmanager
async def redis_world(url: str, *, results_apart: bool = False) -> AsyncGenerator[RedisWorld]:
    """A part of the shared Redis of one's own: every key in it has a lifetime, and none is left."""
    world = RedisWorld(url, results_apart=results_apart)
    world.record_events()
    try:
        with no_eternal_keys(url, [world.prefix]):
            yield world
    finally:
        if left := world.keys_left():
            world.client.delete(*left)
        await world.aclose()


@dataclass
class Watchful(MemoryTaskQueue):
    """A queue that notes what the store holds at the moment it is called."""

    store: TaskStore
    asked: list[TaskRef] = field(default_factory=list[TaskRef])
    seen: list[str | None] = field(default_factory=list[str | None])
    revoking: TaskRef | None = None

    def __post_init__(self) -> None:
        super().__init__()

    async def publish(self, record: TaskRecord, submission: Submission) -> None:
        self.asked.append(record.ref)
        await self._note(record.ref)
        await super().publish(record, submission)

    async def revoke(self, *job_ids: str, terminate: bool = True) -> None:
        await self._note(self.asked[-1])
        await super().revoke(*job_ids, terminate=terminate)

    async def _note(self, ref: TaskRef) -> None:
        stored = await self.store.load(ref)
        self.seen.append(None if stored is None else stored.record.status)


def a_submission(caller: Caller = ALICE, *, ttl_ms: int | None = None, config: TaskConfig | None = None) -> Submission:
    return Submission(
        caller=caller,
        task_type="tool",
        component="build_report",
        config=config or TaskConfig(),
        snapshot=SNAPSHOT,
        ttl_ms=ttl_ms,
    )


def open_tasks(requestor: str, most: int, *, bytes_: int | None = None) -> Quota:
    """A quota of open tasks, and of bytes."""
    return Quota(requestor, (Counter("open", requestor, most),), bytes_)


def a_record(
    *,
    scope: str | None = ALICE.scope,
    component: str = "build_report",
    ttl_ms: int = 60_000,
    attempt: int = 1,
    leg: int = 1,
) -> TaskRecord:
    """A new task, created a while ago, so that a change can be told from the creation by its time."""
    created = now_ms()
    return TaskRecord(
        task_id=new_task_id(),
        scope=scope,
        issuer=ALICE.issuer,
        task_type="tool",
        component=component,
        created_at_ms=created,
        updated_at_ms=created,
        ttl_ms=ttl_ms,
        poll_interval_ms=1_000,
        attempt=attempt,
        leg=leg,
    )


async def hints_of(hints: TaskHints, expected: Sequence[TaskRef]) -> None:
    """Hear, in any order and however often, of the expected tasks."""
    missing = set(expected)
    while missing:
        missing.discard(await hints.__anext__())


def engine_of(world: World, queue: TaskQueue, *, declared: Declared = as_itself, **limits: Any) -> TaskEngine:
    """The engine of one server.

    Args:
        world: Where it keeps tasks.
        queue: Where it publishes jobs.
        declared: What its components declare.
        limits: What differs from ``LIMITS``.
    """
    return TaskEngine(
        store=world.store,
        queue=queue,
        bus=world.bus,
        results=world.results,
        limits=replace(LIMITS, **limits),
        answer_version=LATEST_HANDSHAKE_VERSION,
        observers=world.observers,
        declared=declared,
    )
