"""Task records in Redis: the async store of servers and event loops, and the blocking ledger of signal handlers."""

from __future__ import annotations

import logging
import secrets
from typing import Any, TypeVar, cast

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from mcp_celery.context import TaskContextSnapshot
from mcp_celery.engine import (
    RECORD_BYTES,
    Caller,
    Change,
    Changed,
    Claim,
    EncodedResult,
    Extension,
    FailedLookups,
    Quota,
    StoredTask,
    TaskRecord,
    TaskRef,
)
from mcp_celery.errors import StoreFullError, StoreUnavailableError
from mcp_celery.keys import is_shortened, parse_task_key, task_key_from_job_id
from mcp_celery.redis_keys import RedisKeys
from mcp_celery.sealing import SnapshotCodec
from mcp_celery.store import commands
from mcp_celery.store.codec import continued
from mcp_celery.store.commands import SCRIPTS, Command, Decode, ResultKey
from mcp_celery.store.memory import RETRY_AFTER_MS, MemoryInfo, StoreMemory
from mcp_celery.store.questions import RedisQuestions
from mcp_celery.within import within

logger = logging.getLogger(__name__)

Reply = TypeVar("Reply")


class RedisTaskStore(RedisQuestions):
    """Fulfils :class:`mcp_celery.engine.TaskStore`.

    Args:
        client: From :func:`mcp_celery.store.connect`; belongs to this store and closes with it.
        keys: Names of the keys.
        timeout_seconds: How long a call may take.
        result_key: Where the result backend keeps a job's result, None when it is not in this Redis.
        decode_result: Reads what the result backend stored.
        snapshots: How snapshots are written.
        memory: Says whether there is memory for one more task, None for always.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        keys: RedisKeys,
        *,
        timeout_seconds: float,
        result_key: ResultKey | None = None,
        decode_result: Decode | None = None,
        snapshots: SnapshotCodec | None = None,
        memory: StoreMemory | None = None,
    ) -> None:
        self.client = client
        self.keys = keys
        self._timeout_seconds = timeout_seconds
        self._result_key = result_key
        self._decode_result = decode_result
        self._snapshots = snapshots or SnapshotCodec()
        self._memory = memory
        self._scripts = {name: client.register_script(text) for name, text in SCRIPTS.items()}

    async def create(self, record: TaskRecord, snapshot: TaskContextSnapshot, quota: Quota | None = None) -> None:
        """Keep a new record and what belongs to it, unless the quota or the memory is used up."""
        written = self._snapshots.write(snapshot, self.keys.snapshot(record.scope, record.task_id))
        memory, size = self._memory, RECORD_BYTES + len(written)
        if memory is not None and not await memory.has_room(size, self._memory_info):
            raise StoreFullError(memory.most_percent, retry_after_ms=RETRY_AFTER_MS)
        try:
            await self.run(commands.create(self.keys, record, written, quota, self._result_key))
        except StoreUnavailableError as error:
            if isinstance(error.__cause__, redis.OutOfMemoryError):
                raise StoreFullError(100, retry_after_ms=RETRY_AFTER_MS) from error
            raise

    async def _memory_info(self) -> MemoryInfo:
        return await self.guarded(cast(Any, self.client).info("memory"))

    async def count_failed_lookups(self, requestor: str, number: int, *, window_ms: int) -> FailedLookups:
        """Count look-ups of a requestor that found nothing."""
        return await self.run(commands.count_failed_lookups(self.keys, requestor, number, window_ms=window_ms))

    async def finish(self, ref: TaskRef, change: Change, result: EncodedResult) -> bool:
        """Store a job's result in this Redis and move its task, in one step."""
        return await self.run(commands.finish(self.keys, ref, change, result))

    async def load(self, ref: TaskRef) -> StoredTask | None:
        """The record, with the job's stored result where it is in this Redis."""
        return await self.run(commands.load(self.keys, ref, self._decode_result))

    async def page(self, owner: Caller, *, before: str | None, limit: int) -> list[StoredTask]:
        """An owner's tasks that are alive, the newest first."""
        index = self.keys.index(owner.scope, owner.issuer, owner.session)
        if index is None:
            return []
        command = commands.page(self.keys, index, owner, before=before, limit=limit, decode=self._decode_result)
        return await self.run(command)

    async def change(self, ref: TaskRef, change: Change) -> Changed | None:
        """Apply a change in one step, and publish it."""
        return await self.run(commands.change(self.keys, ref, change))

    async def start(
        self, ref: TaskRef, *, attempt: int, retries: int, at_ms: int, delivery: str = "", worker: str = ""
    ) -> TaskContextSnapshot | None:
        """Let the body of a job begin, once for each (attempt, retries)."""
        # Some name it needs in any case: the connection asks again by itself when it breaks before the answer.
        delivery = delivery or secrets.token_hex(8)
        command = commands.start(
            self.keys, ref, attempt=attempt, retries=retries, at_ms=at_ms, delivery=delivery, worker=worker
        )
        started = await self.run(command)
        snapshot = None if started is None else self._read(ref, started.snapshot)
        return None if started is None or snapshot is None else continued(snapshot, started.leg, started.answers)

    async def snapshot(self, ref: TaskRef) -> TaskContextSnapshot | None:
        """The creating request's context, to publish a task's job anew."""
        return self._read(ref, await self.guarded(self.client.get(self.keys.snapshot(ref.scope, ref.task_id))))

    def _read(self, ref: TaskRef, written: bytes | None) -> TaskContextSnapshot | None:
        return None if written is None else self._snapshots.read(written, self.keys.snapshot(ref.scope, ref.task_id))

    async def delete(self, ref: TaskRef) -> bool:
        """Forget a record, its snapshot and its place in its owner's list, unless its job has begun."""
        return await self.run(commands.delete(self.keys, ref))

    async def retire(self, ref: TaskRef, at_ms: int) -> None:
        """Let a task go at ``at_ms``, with everything that belongs to it, if that is before its time."""
        await self.run(commands.retire(self.keys, ref, at_ms))

    async def keep(self, ref: TaskRef, extension: Extension) -> None:
        """Let an open task live longer."""
        await self.run(commands.keep(self.keys, ref, extension))

    async def aclose(self) -> None:
        """Close every connection."""
        await self.client.aclose(close_connection_pool=True)

    async def run(self, command: Command[Reply]) -> Reply:
        """Send a command.

        Raises:
            StoreUnavailableError: The store did not answer in time.
        """
        script = self._scripts[command.script]
        return command.parse(await self.guarded(script(keys=list(command.keys), args=list(command.args))))

    async def guarded(self, call: Any) -> Any:
        """Await one of redis-py's own calls.

        Raises:
            StoreUnavailableError: The store did not answer in time.
        """
        try:
            async with within(self._timeout_seconds):
                return await call
        except (redis.RedisError, OSError, TimeoutError) as error:
            logger.warning("the task store (MCP_CELERY_REDIS_URL) failed: %s", _reason(error))
            raise StoreUnavailableError from error


class RedisJobLedger:
    """Fulfils :class:`mcp_celery.engine.JobLedger` with blocking calls; survives forks, since redis-py checks the pid.

    Args:
        url: ``MCP_CELERY_REDIS_URL``.
        keys: Names of the keys.
        timeout_seconds: How long a call may take.
    """

    def __init__(self, url: str, keys: RedisKeys, *, timeout_seconds: float) -> None:
        self._keys = keys
        self._client = redis.Redis.from_url(
            url,
            socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds,
            retry=Retry(NoBackoff(), 1),
        )
        self._scripts = {name: self._client.register_script(text) for name, text in SCRIPTS.items()}

    def claim(self, ref: TaskRef, *, attempt: int, claim: Claim, retries: int = 0) -> bool:
        """Note which worker received the job."""
        return self._run(commands.claim(self._keys, ref, attempt=attempt, retries=retries, claim=claim))

    def change(self, ref: TaskRef, change: Change) -> Changed | None:
        """Apply a change in one step, and publish it."""
        return self._run(commands.change(self._keys, ref, change))

    def finish(self, ref: TaskRef, change: Change, result: EncodedResult) -> bool:
        """Store a job's result in this Redis and move its task, in one step."""
        return self._run(commands.finish(self._keys, ref, change, result))

    def find(self, job_id: str) -> TaskRecord | None:
        """The record whose current job has this Celery id."""
        key = self._key_of_shortened(job_id) if is_shortened(job_id) else task_key_from_job_id(job_id)
        if key is None:
            return None
        parts = parse_task_key(key)
        stored = self._run(commands.load(self._keys, TaskRef(parts.task_scope, parts.client_task_id), None))
        return stored.record if stored is not None and stored.record.job_id == job_id else None

    def _key_of_shortened(self, job_id: str) -> str | None:
        """The compound key of a shortened Celery id, whose alias is that of the task's first leg."""
        try:
            found = cast("bytes | None", self._client.get(self._keys.job_alias(job_id.partition("!")[0])))
        except redis.RedisError as error:
            logger.warning("the task store (MCP_CELERY_REDIS_URL) failed: %s", _reason(error))
            raise StoreUnavailableError from error
        return None if found is None else found.decode()

    def close(self) -> None:
        """Close every connection of this process."""
        self._client.close()

    def _run(self, command: Command[Reply]) -> Reply:
        script = self._scripts[command.script]
        try:
            return command.parse(script(keys=list(command.keys), args=list(command.args)))
        except redis.RedisError as error:
            logger.warning("the task store (MCP_CELERY_REDIS_URL) failed: %s", _reason(error))
            raise StoreUnavailableError from error


def _reason(error: BaseException) -> str:
    """An error's kind and text on one line; redis-py's texts name the address, never the password."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
