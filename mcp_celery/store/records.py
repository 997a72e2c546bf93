"""Task records in Redis: the async store of servers and event loops, and the blocking ledger of signal handlers."""

from __future__ import annotations

import asyncio
import functools
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar, cast

import redis
from redis.exceptions import ClusterCrossSlotError, NoPermissionError
from typing_extensions import override

from mcp_celery.common.call_limiter import NoAnswerError
from mcp_celery.common.outage import Outage
from mcp_celery.context import TaskContextSnapshot
from mcp_celery.engine import (
    RECORD_BYTES,
    UNOBSERVED,
    Caller,
    Change,
    Changed,
    Claim,
    EarlierTask,
    EncodedResult,
    Extension,
    FailedLookups,
    HandBack,
    HandedBack,
    HeldBack,
    Idempotency,
    Observers,
    QueueMessage,
    Quota,
    Start,
    StoredTask,
    TaskRecord,
    TaskRef,
)
from mcp_celery.engine.ports import JobLedger, TaskStore
from mcp_celery.engine.store_mark import StoreMark
from mcp_celery.errors import (
    MessageRefusedError,
    SnapshotUnreadableError,
    StoredDataError,
    StoreFullError,
    StoreUnavailableError,
)
from mcp_celery.keys import is_shortened, task_key_from_job_id
from mcp_celery.sealing import UNSEALED, SealError, SnapshotCodec
from mcp_celery.store import commands
from mcp_celery.store.client import StoreClient
from mcp_celery.store.codec import continued, fixed_of
from mcp_celery.store.commands import Decode, ResultKey, next_of
from mcp_celery.store.connection import IDLE_SECONDS, AlsoSilentError, call_blocking, connect_blocking
from mcp_celery.store.failures import described
from mcp_celery.store.fields import FIXED
from mcp_celery.store.keys import RedisKeys
from mcp_celery.store.memory import RETRY_AFTER_MS, MemoryInfo, StoreMemory
from mcp_celery.store.named import NamedKeys
from mcp_celery.store.questions import RedisQuestions
from mcp_celery.store.replies import NextScript
from mcp_celery.store.scripts import (
    MOST_CALLS,
    Command,
    added_to,
    crossed,
    heard,
    keys_of,
    read,
    remember,
    scripts_of,
    without_end,
)
from mcp_celery.store.sealed import TaskSeals
from mcp_celery.store.unreadable import is_data_error, key_of, log_removed, reason_of, shown
from mcp_celery.telemetry.tasks import measured_operation

logger = logging.getLogger(__name__)

Reply = TypeVar("Reply")
FOUND_TOGETHER: Final = 1_000
"""How many tasks are looked for at a time."""
LARGE_REPLIES: Final = frozenset({"page"})
"""Scripts whose answers are expected to be large."""
LOADED_TOGETHER: Final = 100
"""How many are read at a time, perhaps with their results."""
NOT_DONE: Final = "could not call the script %s after another one, so the reaper will: %s"


class RedisTaskStore(RedisQuestions, TaskStore):
    """Fulfils :class:`mcp_celery.engine.TaskStore`.

    Args:
        client: From :func:`mcp_celery.store.connect`; belongs to this store and closes with it.
        keys: Names of the keys.
        result_key: Where the result backend keeps a job's result, None when it is not in this Redis.
        decode_result: Reads what the result backend stored.
        snapshots: How snapshots are written, and other texts sealed.
        memory: Says whether there is memory for one more task, None for always.
        observers: To whom changes of tasks are reported.
        outage: Logs the beginning and the end of an outage. None: each call that fails is logged.

    Attributes:
        named: The keys that records name, as far as the process knows them.
    """

    def __init__(
        self,
        client: StoreClient,
        keys: RedisKeys,
        *,
        result_key: ResultKey | None = None,
        decode_result: Decode | None = None,
        snapshots: SnapshotCodec = UNSEALED,
        memory: StoreMemory | None = None,
        observers: Observers = UNOBSERVED,
        outage: Outage | None = None,
    ) -> None:
        client.outage = outage
        self.named = NamedKeys()
        self.client = client
        self.keys = keys
        self._result_key = result_key
        self._decode_result = decode_result
        self.seals = TaskSeals(keys, snapshots)
        self._memory = memory
        self._observers = observers
        self._outage = outage
        self._scripts = {name: client.redis.register_script(text) for name, text in scripts_of(keys).items()}

    @override
    async def create(
        self,
        record: TaskRecord,
        snapshot: TaskContextSnapshot,
        quota: Quota | None = None,
        idempotency: Idempotency | None = None,
        message: QueueMessage | None = None,
    ) -> EarlierTask | HeldBack | None:
        fields = self.seals.new_record(record)
        written = self.seals.request(record.ref, snapshot, fixed_of(fields))
        memory, size = self._memory, RECORD_BYTES + len(written)
        if memory is not None and not await memory.has_room(size, self._memory_info):
            raise StoreFullError(memory.most_percent, retry_after_ms=RETRY_AFTER_MS)
        command = commands.create(self.keys, record, fields, written, quota, self._result_key, idempotency, message)
        try:
            found = await self.run(command)
        except StoreUnavailableError as error:
            if isinstance(error.__cause__, redis.OutOfMemoryError):
                raise StoreFullError(100, retry_after_ms=RETRY_AFTER_MS) from error
            if message is not None and isinstance(error.__cause__, NoPermissionError | ClusterCrossSlotError):
                raise MessageRefusedError(described(error.__cause__)) from error
            raise
        if not isinstance(found, EarlierTask):
            for use, names in command.learned.items():
                self.named.learn(use, str(command.keys[0]), names)
        return found

    @override
    async def earlier(self, record: TaskRecord, idempotency: Idempotency) -> EarlierTask | None:
        return await self.run(commands.earlier(self.keys, record, idempotency))

    async def _memory_info(self) -> MemoryInfo:
        return await self.guarded(lambda: cast(Any, self.client.redis).info("memory"))

    @override
    async def count_failed_lookups(self, requestor: str, number: int, *, window_ms: int) -> FailedLookups:
        return await self.run(commands.count_failed_lookups(self.keys, requestor, number, window_ms=window_ms))

    @override
    async def finish(self, ref: TaskRef, change: Change, result: EncodedResult) -> bool:
        return await self.run(commands.finish(self.seals, ref, change, result))

    @override
    async def load(self, ref: TaskRef) -> StoredTask | None:
        unreadable: list[bytes] = []
        command = commands.load(self.seals, ref, self._decode_result, unreadable)
        reply = await self._loaded_directly(command)
        stored = read(command, await self._reply(command) if reply is None else reply)
        await self.remove("HDEL", self.keys.questions(ref.scope, ref.task_id), unreadable)
        return stored

    async def _loaded_directly(self, command: Command[Any]) -> commands.LoadReply | None:
        """The reply of a script that reads a task, without the script: converting a record to Lua's values and back
        costs the store five times as much as to read it.

        Returns:
            None where only the script can tell.

        Raises:
            StoreUnavailableError: The store did not answer in time.
        """
        pipeline, record = self.client.pipeline, command.keys[0]
        if pipeline is None:
            return None
        result: str | bytes | None = None
        if self._decode_result is not None:
            result = next(iter(self.named.of("read", str(record))), None)
            if result is None:
                return None
        asked: list[tuple[str, str | bytes]] = [("HGETALL", record)]
        if result is not None:
            asked.append(("GET", result))
        try:
            with measured_operation(command.script):
                answers = await self._translated(self.client.ask(pipeline, *asked), record)
        except StoredDataError:
            return None  # a key has another type, which the script deals with
        return commands.loaded_directly(answers, result)

    @override
    async def present(self, refs: Sequence[TaskRef]) -> list[TaskRef]:
        found: list[TaskRef] = []
        for start in range(0, len(refs), FOUND_TOGETHER):
            found += await self.run(commands.present(self.keys, refs[start : start + FOUND_TOGETHER]))
        return found

    @override
    async def load_many(self, refs: Sequence[TaskRef]) -> list[StoredTask | None]:
        found: list[StoredTask | None] = []
        for start in range(0, len(refs), LOADED_TOGETHER):
            found += await self._load_together(refs[start : start + LOADED_TOGETHER])
        return found

    async def _load_together(self, refs: Sequence[TaskRef]) -> list[StoredTask | None]:
        asked: list[Command[StoredTask | None]] = []
        unreadable: list[list[bytes]] = []
        for ref in refs:
            unreadable.append([])
            command = commands.load(self.seals, ref, self._decode_result, unreadable[-1])
            asked.append(added_to(command, self.named))

        found: list[StoredTask | None] = []
        for command, reply in zip(asked, await self._replies_to_all(asked), strict=True):
            try:
                if isinstance(reply, BaseException):
                    raise _told(reply, command.keys[0]) if isinstance(reply, redis.RedisError) else reply
                found.append(read(command, reply))
            except StoredDataError as error:
                logger.error("left a task out of a read of several: %s", error.reason)
                found.append(None)
        for ref, keys in zip(refs, unreadable, strict=True):
            await self.remove("HDEL", self.keys.questions(ref.scope, ref.task_id), keys)
        return found

    async def _replies_to_all(self, asked: Sequence[Command[Any]]) -> list[Any]:
        """The scripts' own replies, or errors. Those that ask for keys are called again."""

        async def load() -> list[Any]:
            # Made anew for each try: it forgets its commands when it has failed.
            async with self.client.redis.pipeline(transaction=False) as pipeline:
                for one in asked:
                    await self._scripts[one.script](keys=keys_of(one, self.keys), args=one.argv, client=pipeline)
                return await pipeline.execute(raise_on_error=False)

        parts = [heard(reply, self._observers) for reply in cast("list[Any]", await self.guarded(load))]
        again = [
            place for place, one in enumerate(parts) if one.asked_for or isinstance(one.own, ClusterCrossSlotError)
        ]
        found = await asyncio.gather(*(self._reply(asked[place]) for place in again), return_exceptions=True)
        replies = dict(zip(again, found, strict=True))
        return [replies.get(place, one.own) for place, one in enumerate(parts)]

    @override
    async def page(self, owner: Caller, *, before: str | None, limit: int) -> list[StoredTask]:
        index = self.keys.index(owner.scope, owner.issuer, owner.session)
        if index is None:
            return []
        found: list[StoredTask] = []
        at: str | bytes = "+" if before is None else f"({before}"
        while len(found) < limit:
            parts = ("BYLEX", "REV", "LIMIT", "0", str(limit - len(found)))
            members = cast("list[bytes]", await self.on_index("ZRANGE", index, at, "-", *parts))
            if not members:
                break
            at = b"(" + members[-1]
            unreadable: list[str | bytes] = []
            positions = commands.positions_in(members, unreadable)
            if positions:
                command = commands.page(self.seals, index, owner, positions, unreadable, self._decode_result)
                found += await self.run(command)
            await self.remove("ZREM", index, unreadable)  # what follows in the list takes their place
        return found

    @override
    async def change(self, ref: TaskRef, change: Change) -> Changed | None:
        return await self.run(commands.change(self.seals, ref, change))

    @override
    async def start(self, ref: TaskRef, start: Start) -> TaskContextSnapshot | None:
        # Some name it needs in any case: the connection asks again by itself when it breaks before the answer.
        command = commands.start(self.keys, ref, replace(start, delivery=start.delivery or secrets.token_hex(8)))
        started = await self.run(command)
        if started is None:
            return None
        self.named.learn("end", self.keys.record(ref.scope, ref.task_id), started.names)
        snapshot = self.seals.open_request(ref, started.snapshot, started.fixed)
        self.seals.require_alive(started.fixed, start.at_ms)
        open_answer = functools.partial(self.seals.open_answer, ref)
        try:
            return continued(
                snapshot, started.leg, started.answers, open_answer, self.seals.open_state(ref, started.leg)
            )
        except SealError as error:
            raise SnapshotUnreadableError(f"an answer or the state of the job before: {error}") from None

    @override
    async def hand_back(self, ref: TaskRef, handback: HandBack) -> HandedBack:
        return await self.run(commands.hand_back(self.keys, ref, handback))

    @override
    async def ahead(self, record: TaskRecord) -> int | None:
        if record.waits_in is None:
            return None
        client, waiting = cast(Any, self.client.redis), self.keys.line_of(record.waits_in)
        try:
            return await self.guarded(lambda: client.zrank(waiting, record.key), key=waiting)
        except StoredDataError as error:
            logger.debug("could not count the tasks that wait before task %s: %s", record.shown_id, error.reason)
            return None

    @override
    async def snapshot(self, ref: TaskRef) -> TaskContextSnapshot | None:

        async def read() -> list[Any]:
            # Made anew for each try: it forgets its commands when it has failed.
            async with self.client.redis.pipeline(transaction=False) as pipeline:
                pipeline.get(self.keys.snapshot(ref.scope, ref.task_id))
                pipeline.hmget(self.keys.record(ref.scope, ref.task_id), FIXED)
                return await pipeline.execute()

        try:
            written, fixed = cast("tuple[bytes | None, list[bytes | None]]", await self.guarded(read))
        except StoredDataError as error:
            raise SnapshotUnreadableError(error.reason) from None
        if written is None:
            return None
        return self.seals.open_request(ref, written, [(one or b"").decode() for one in fixed])

    @override
    async def delete(self, ref: TaskRef) -> bool:
        return await self.run(commands.delete(self.keys, ref))

    @override
    async def retire(self, ref: TaskRef, at_ms: int) -> None:
        await self.run(commands.retire(self.keys, ref, at_ms))

    @override
    async def attend(self, ref: TaskRef) -> None:
        await self.run(commands.attend(self.keys, ref))

    @override
    async def keep(self, ref: TaskRef, extension: Extension) -> None:
        await self.run(commands.keep(self.keys, ref, extension))

    @override
    async def aclose(self) -> None:
        await self.client.aclose()

    async def run(self, command: Command[Reply]) -> Reply:
        """Send a command.

        Raises:
            StoreUnavailableError: The store did not answer in time.
            StoredDataError: What it holds under the command's keys cannot be used.
        """
        return read(command, await self._reply(command))

    async def _reply(self, command: Command[Any]) -> Any:
        """A script's own reply. It is called again with the keys that it asks for."""
        command, has_asked = added_to(command, self.named), False
        for _ in range(MOST_CALLS):
            try:
                parts = heard(await self._send(command), self._observers)
            except StoreUnavailableError as error:
                command = crossed(command, error)
                continue
            for script in parts.to_do:
                await self._do_next(script)
            if not parts.asked_for:
                if has_asked:
                    remember(command, self.named)
                return parts.own
            command, has_asked = command.with_more(parts.asked_for), True
        return without_end(command)

    async def _send(self, command: Command[Any]) -> Any:
        call = self.client.call_script(
            self._scripts[command.script],
            keys_of(command, self.keys),
            command.argv,
            may_be_repeated=command.may_be_repeated,
            is_large=command.script in LARGE_REPLIES,
        )
        with measured_operation(command.script):
            return await self._translated(call, command.keys[0])

    async def _do_next(self, script: NextScript) -> None:
        """Call a script that another one leaves to be called. If it fails, the reaper does the same later."""
        try:
            await self._reply(next_of(self.keys, script))
        except (StoreUnavailableError, StoredDataError) as error:
            logger.warning(NOT_DONE, script.name, error)

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

    async def guarded(
        self, call: Callable[[], Awaitable[Any]], *, key: str = "a key", may_be_repeated: bool = True
    ) -> Any:
        """Make one of redis-py's own calls.

        Args:
            call: Makes it.
            key: Which key it is for, for the error's text.
            may_be_repeated: Whether to make it once more when its answer was lost.

        Raises:
            StoreUnavailableError: The store did not answer in time.
            StoredDataError: What it holds there cannot be used.
        """
        return await self._translated(self.client.call(call, may_be_repeated=may_be_repeated), key)

    async def _translated(self, call: Awaitable[Any], key: str | bytes) -> Any:
        """Make a call whose errors are this package's."""
        outage = self._outage
        try:
            answer = await call
        except NoAnswerError:
            raise StoreUnavailableError(is_sent=False) from None  # logged with the calls that had a connection
        except AlsoSilentError:
            raise StoreUnavailableError from None
        except (redis.RedisError, OSError, TimeoutError) as error:
            raise _told(error, key, outage) from error
        if outage is not None and outage.is_on:
            outage.ended()
        return answer


class RedisJobLedger(JobLedger):
    """Fulfils :class:`mcp_celery.engine.JobLedger` with blocking calls; survives forks, since redis-py checks the pid.

    Args:
        url: ``MCP_CELERY_REDIS_URL``.
        keys: Names of the keys.
        timeout_seconds: How long the store may be silent upon a command.
        max_connections: How many connections it has; threads wait when all are busy.
        snapshots: How texts are sealed.
        observers: To whom changes of tasks are reported.
        credentials: Gives user and password for each connection. None: those of the URL.
        idle_seconds: After which time without a command a connection is replaced.

    Attributes:
        named: As for :class:`RedisTaskStore`.
    """

    def __init__(
        self,
        url: str,
        keys: RedisKeys,
        *,
        timeout_seconds: float,
        max_connections: int = 32,
        snapshots: SnapshotCodec = UNSEALED,
        observers: Observers = UNOBSERVED,
        credentials: redis.CredentialProvider | None = None,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._keys = keys
        self.named = NamedKeys()
        self._seals = TaskSeals(keys, snapshots)
        self._observers = observers
        self._client = connect_blocking(
            url,
            timeout_seconds=timeout_seconds,
            max_connections=max_connections,
            credentials=credentials,
            idle_seconds=idle_seconds,
            key=keys.root,
        )
        self._scripts = {name: self._client.register_script(text) for name, text in scripts_of(keys).items()}

    @override
    def claim(self, ref: TaskRef, *, attempt: int, claim: Claim, retries: int = 0) -> bool:
        return self._run(commands.claim(self._keys, ref, attempt=attempt, retries=retries, claim=claim))

    @override
    def change(self, ref: TaskRef, change: Change) -> Changed | None:
        return self._run(commands.change(self._seals, ref, change))

    @override
    def finish(self, ref: TaskRef, change: Change, result: EncodedResult) -> bool:
        return self._run(commands.finish(self._seals, ref, change, result))

    @override
    def hand_back(self, ref: TaskRef, handback: HandBack) -> HandedBack:
        return self._run(commands.hand_back(self._keys, ref, handback))

    @override
    def is_kept(self, ref: TaskRef) -> bool:
        return bool(self._run(commands.present(self._keys, [ref])))

    @override
    def mark(self) -> StoreMark | None:
        return self._run(commands.mark(self._keys))

    @override
    def find(self, job_id: str) -> TaskRecord | None:
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
        return read(command, self._reply(command))

    def _reply(self, command: Command[Any]) -> Any:
        """As :meth:`RedisTaskStore._reply`."""
        command, has_asked = added_to(command, self.named), False
        for _ in range(MOST_CALLS):
            try:
                parts = heard(self._send(command), self._observers)
            except StoreUnavailableError as error:
                command = crossed(command, error)
                continue
            for script in parts.to_do:
                self._do_next(script)
            if not parts.asked_for:
                if has_asked:
                    remember(command, self.named)
                return parts.own
            command, has_asked = command.with_more(parts.asked_for), True
        return without_end(command)

    def _send(self, command: Command[Any]) -> Any:
        script = self._scripts[command.script]
        try:
            with measured_operation(command.script):
                return call_blocking(
                    lambda: script(keys=keys_of(command, self._keys), args=command.argv),
                    may_be_repeated=command.may_be_repeated,
                )
        except redis.RedisError as error:
            raise _told(error, command.keys[0]) from error

    def _do_next(self, script: NextScript) -> None:
        """As :meth:`RedisTaskStore._do_next`."""
        try:
            self._reply(next_of(self._keys, script))
        except (StoreUnavailableError, StoredDataError) as error:
            logger.warning(NOT_DONE, script.name, error)


def _told(error: Exception, key: str | bytes, outage: Outage | None = None) -> StoreUnavailableError | StoredDataError:
    """What an error of redis-py means. An outage is logged here, and damage where it is dealt with."""
    if is_data_error(error):
        return StoredDataError(f"{shown(key)} cannot be used: {reason_of(error)}")
    if outage is None or isinstance(error, redis.ResponseError):
        # A server that answers and refuses a command, for want of memory for example, may carry out the next one.
        logger.warning("the task store (MCP_CELERY_REDIS_URL) failed: %s", described(error))
    else:
        outage.began(type(error).__name__, described(error))
    return StoreUnavailableError()
