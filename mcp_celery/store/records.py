"""Task records in Redis: the async store of servers and event loops, and the blocking ledger of signal handlers."""

from __future__ import annotations

import functools
import logging
import secrets
from collections.abc import Sequence
from typing import Any, Final, TypeVar, cast

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from mcp_celery.context import TaskContextSnapshot
from mcp_celery.engine import (
    RECORD_BYTES,
    UNOBSERVED,
    Caller,
    Change,
    Changed,
    Claim,
    EncodedResult,
    Extension,
    FailedLookups,
    Observers,
    Quota,
    StoredTask,
    TaskRecord,
    TaskRef,
)
from mcp_celery.errors import SnapshotUnreadableError, StoredDataError, StoreFullError, StoreUnavailableError
from mcp_celery.keys import is_shortened, task_key_from_job_id
from mcp_celery.redis_keys import RedisKeys
from mcp_celery.sealing import UNSEALED, Place, SealError, SnapshotCodec
from mcp_celery.store import commands
from mcp_celery.store.codec import continued, encode_record, fixed_of
from mcp_celery.store.commands import SCRIPTS, Command, Decode, ResultKey
from mcp_celery.store.fields import FIXED
from mcp_celery.store.memory import RETRY_AFTER_MS, MemoryInfo, StoreMemory
from mcp_celery.store.questions import RedisQuestions
from mcp_celery.store.sealed import TaskSeals
from mcp_celery.store.unreadable import is_data_error, key_of, log_removed, reason_of, shown
from mcp_celery.within import within

logger = logging.getLogger(__name__)

Reply = TypeVar("Reply")
FOUND_TOGETHER: Final = 1_000
"""How many tasks are looked for at a time."""
LOADED_TOGETHER: Final = 100
"""How many are read at a time, perhaps with their results."""


class RedisTaskStore(RedisQuestions):
    """Fulfils :class:`mcp_celery.engine.TaskStore`.

    Args:
        client: From :func:`mcp_celery.store.connect`; belongs to this store and closes with it.
        keys: Names of the keys.
        timeout_seconds: How long a call may take.
        result_key: Where the result backend keeps a job's result, None when it is not in this Redis.
        decode_result: Reads what the result backend stored.
        snapshots: How snapshots are written, and other texts sealed.
        memory: Says whether there is memory for one more task, None for always.
        observers: To whom changes of tasks are reported.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        keys: RedisKeys,
        *,
        timeout_seconds: float,
        result_key: ResultKey | None = None,
        decode_result: Decode | None = None,
        snapshots: SnapshotCodec = UNSEALED,
        memory: StoreMemory | None = None,
        observers: Observers = UNOBSERVED,
    ) -> None:
        self.client = client
        self.keys = keys
        self._timeout_seconds = timeout_seconds
        self._result_key = result_key
        self._decode_result = decode_result
        self.seals = TaskSeals(keys, snapshots)
        self._memory = memory
        self._observers = observers
        self._scripts = {name: client.register_script(text) for name, text in SCRIPTS.items()}

    async def create(self, record: TaskRecord, snapshot: TaskContextSnapshot, quota: Quota | None = None) -> None:
        """Keep a new record and what belongs to it, unless the quota or the memory is used up."""
        fields = encode_record(record)
        written = self.seals.snapshots.write(snapshot, self._place(record.ref, fixed_of(fields)))
        memory, size = self._memory, RECORD_BYTES + len(written)
        if memory is not None and not await memory.has_room(size, self._memory_info):
            raise StoreFullError(memory.most_percent, retry_after_ms=RETRY_AFTER_MS)
        try:
            await self.run(commands.create(self.keys, record, fields, written, quota, self._result_key))
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
        return await self.run(commands.finish(self.seals, ref, change, result))

    async def load(self, ref: TaskRef) -> StoredTask | None:
        """The record, with the job's stored result where it is in this Redis."""
        unreadable: list[bytes] = []
        stored = await self.run(commands.load(self.seals, ref, self._decode_result, unreadable))
        await self.remove("HDEL", self.keys.questions(ref.scope, ref.task_id), unreadable)
        return stored

    async def present(self, refs: Sequence[TaskRef]) -> list[TaskRef]:
        """Those of several tasks that there are, in the order given."""
        found: list[TaskRef] = []
        for start in range(0, len(refs), FOUND_TOGETHER):
            found += await self.run(commands.present(self.keys, refs[start : start + FOUND_TOGETHER]))
        return found

    async def load_many(self, refs: Sequence[TaskRef]) -> list[StoredTask | None]:
        """As :meth:`load`, of several tasks together. None also for one that cannot be read, which is logged."""
        found: list[StoredTask | None] = []
        for start in range(0, len(refs), LOADED_TOGETHER):
            found += await self._load_together(refs[start : start + LOADED_TOGETHER])
        return found

    async def _load_together(self, refs: Sequence[TaskRef]) -> list[StoredTask | None]:
        asked: list[Command[StoredTask | None]] = []
        unreadable: list[list[bytes]] = []
        async with self.client.pipeline(transaction=False) as pipeline:
            for ref in refs:
                unreadable.append([])
                asked.append(commands.load(self.seals, ref, self._decode_result, unreadable[-1]))
                await self._scripts["load"](keys=list(asked[-1].keys), args=[], client=pipeline)
            replies = cast("list[Any]", await self.guarded(pipeline.execute(raise_on_error=False)))
        found: list[StoredTask | None] = []
        for command, reply in zip(asked, replies, strict=True):
            try:
                if isinstance(reply, Exception):
                    raise _told(reply, command.keys[0])
                found.append(commands.read(command, reply))
            except StoredDataError as error:
                logger.error("a task is left out of those that are asked for together: %s", error.reason)
                found.append(None)
        for ref, keys in zip(refs, unreadable, strict=True):
            await self.remove("HDEL", self.keys.questions(ref.scope, ref.task_id), keys)
        return found

    async def page(self, owner: Caller, *, before: str | None, limit: int) -> list[StoredTask]:
        """An owner's tasks that are alive, the newest first."""
        index = self.keys.index(owner.scope, owner.issuer, owner.session)
        if index is None:
            return []
        while True:
            unreadable: list[bytes] = []
            command = commands.page(
                self.seals, index, owner, unreadable, before=before, limit=limit, decode=self._decode_result
            )
            found = await self.run(command)
            if not unreadable:
                return found
            await self.remove("ZREM", index, unreadable)  # what follows in the list takes their place

    async def change(self, ref: TaskRef, change: Change) -> Changed | None:
        """Apply a change in one step, and publish it."""
        return await self.run(commands.change(self.seals, ref, change))

    async def start(
        self,
        ref: TaskRef,
        *,
        attempt: int,
        retries: int,
        at_ms: int,
        delivery: str = "",
        worker: str = "",
        key: str = "",
    ) -> TaskContextSnapshot | None:
        """Let the body of a job begin, once for each (attempt, retries)."""
        # Some name it needs in any case: the connection asks again by itself when it breaks before the answer.
        delivery = delivery or secrets.token_hex(8)
        command = commands.start(
            self.keys, ref, attempt=attempt, retries=retries, at_ms=at_ms, delivery=delivery, worker=worker, key=key
        )
        started = await self.run(command)
        if started is None:
            return None
        snapshot = self.seals.snapshots.read(started.snapshot, self._place(ref, started.fixed))
        open_answer = functools.partial(self.seals.open_answer, ref)
        try:
            return continued(
                snapshot, started.leg, started.answers, open_answer, self.seals.open_state(ref, started.leg)
            )
        except SealError as error:
            raise SnapshotUnreadableError(f"an answer or the state of the job before: {error}") from None

    async def snapshot(self, ref: TaskRef) -> TaskContextSnapshot | None:
        """The creating request's context, to publish a task's job anew."""
        client: Any = self.client
        try:
            written = await self.guarded(client.get(self.keys.snapshot(ref.scope, ref.task_id)))
            fixed = await self.guarded(client.hmget(self.keys.record(ref.scope, ref.task_id), FIXED))
        except StoredDataError as error:
            raise SnapshotUnreadableError(error.reason) from None
        if written is None:
            return None
        return self.seals.snapshots.read(written, self._place(ref, [(one or b"").decode() for one in fixed]))

    def _place(self, ref: TaskRef, fixed: Sequence[str]) -> Place:
        """Where alone a snapshot may be read: under its key, and beside a record with these fields."""
        return [self.keys.snapshot(ref.scope, ref.task_id), *fixed]

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
            StoredDataError: What it holds under the command's keys cannot be used.
        """
        script = self._scripts[command.script]
        reply = await self.guarded(script(keys=list(command.keys), args=list(command.args)), key=command.keys[0])
        return commands.read(command, reply, self._observers)

    async def on_index(self, command: str, index: str, *args: str | bytes) -> Any:
        """Call one of Redis' own commands on an index, which is deleted first if it has another type.

        Raises:
            StoreUnavailableError: The store did not answer in time.
        """
        return await self.run(commands.on_index(command, index, *args))

    async def remove(self, command: str, index: str, members: Sequence[str | bytes], reason: str = "") -> None:
        """Remove members that cannot be read from an index, and log each.

        Args:
            command: ZREM, SREM or HDEL.
            index: The key.
            members: None where nothing is to be removed.
            reason: What is wrong with them.

        Raises:
            StoreUnavailableError: The store did not answer in time.
        """
        if members:
            await self.on_index(command, index, *members)
        for member in members:
            log_removed(index, member, reason)

    async def guarded(self, call: Any, *, key: str = "a key") -> Any:
        """Await one of redis-py's own calls.

        Args:
            call: The call.
            key: Which key it is for, for the error's text.

        Raises:
            StoreUnavailableError: The store did not answer in time.
            StoredDataError: What it holds there cannot be used.
        """
        try:
            async with within(self._timeout_seconds):
                return await call
        except (redis.RedisError, OSError, TimeoutError) as error:
            raise _told(error, key) from error


class RedisJobLedger:
    """Fulfils :class:`mcp_celery.engine.JobLedger` with blocking calls; survives forks, since redis-py checks the pid.

    Args:
        url: ``MCP_CELERY_REDIS_URL``.
        keys: Names of the keys.
        timeout_seconds: How long a call may take.
        snapshots: How texts are sealed.
        observers: To whom changes of tasks are reported.
    """

    def __init__(
        self,
        url: str,
        keys: RedisKeys,
        *,
        timeout_seconds: float,
        snapshots: SnapshotCodec = UNSEALED,
        observers: Observers = UNOBSERVED,
    ) -> None:
        self._keys = keys
        self._seals = TaskSeals(keys, snapshots)
        self._observers = observers
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
        return self._run(commands.change(self._seals, ref, change))

    def finish(self, ref: TaskRef, change: Change, result: EncodedResult) -> bool:
        """Store a job's result in this Redis and move its task, in one step."""
        return self._run(commands.finish(self._seals, ref, change, result))

    def find(self, job_id: str) -> TaskRecord | None:
        """The record whose current job has this Celery id."""
        key = self._key_of_shortened(job_id) if is_shortened(job_id) else task_key_from_job_id(job_id)
        if key is None:
            return None
        stored = self._run(commands.load(self._seals, TaskRef.of_key(key), None))
        return stored.record if stored is not None and stored.record.job_id == job_id else None

    def _key_of_shortened(self, job_id: str) -> str | None:
        """The compound key of a shortened Celery id, whose alias is that of the task's first leg."""
        alias = self._keys.job_alias(job_id)
        found = cast("bytes | None", self._run(commands.on_index("GET", alias)))
        try:
            return None if found is None else key_of(found)
        except ValueError as error:
            self._run(commands.on_index("DEL", alias))
            log_removed(alias, found, reason_of(error))
            return None

    def close(self) -> None:
        """Close every connection of this process."""
        self._client.close()

    def _run(self, command: Command[Reply]) -> Reply:
        script = self._scripts[command.script]
        try:
            reply = script(keys=list(command.keys), args=list(command.args))
        except redis.RedisError as error:
            raise _told(error, command.keys[0]) from error
        return commands.read(command, reply, self._observers)


def _told(error: Exception, key: str) -> StoreUnavailableError | StoredDataError:
    """What an error of redis-py means. An outage is logged here, and damage where it is dealt with."""
    if is_data_error(error):
        return StoredDataError(f"{shown(key)} cannot be used: {reason_of(error)}")
    logger.warning("the task store (MCP_CELERY_REDIS_URL) failed: %s", reason_of(error))
    return StoreUnavailableError()
