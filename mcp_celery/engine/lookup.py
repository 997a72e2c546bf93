"""Per-caller task look-up, with a limit on failed look-ups.

Failures are counted in the store, for all servers; a look-up that succeeds costs nothing more. A server remembers whom
it has to refuse, and asks the store nothing for them until their window ends. Another server learns of it with the
requestor's next failure there.

Requestors that others may share, such as an address, are not locked out of what is theirs: only their further failures
are refused.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from cachetools import TLRUCache

from mcp_celery import audit
from mcp_celery.engine.attendance import Attendance
from mcp_celery.engine.followup_jobs import Declared, as_itself
from mcp_celery.engine.ids import is_wire_task_id
from mcp_celery.engine.limits import TaskLimits
from mcp_celery.engine.ports import TaskStore
from mcp_celery.engine.read_models import StoredTask
from mcp_celery.engine.record import Caller, TaskRecord, TaskRef
from mcp_celery.errors import StoreUnavailableError, TaskNotFoundError, TooManyLookupsError

_REMEMBERED: Final = 10_000
"""The most requestors that one server refuses at a time. With more, the one that asked longest ago may fail again."""


def _until(_requestor: str, until: float, _now: float) -> float:
    """When a server forgets that it refuses a requestor: when its window has ended."""
    return until


class Lookups:
    """Finds callers' tasks.

    Args:
        store: Where records are kept, and failures counted.
        limits: How many of them a requestor may have.
        declared: What the tasks' components declare.
    """

    def __init__(self, store: TaskStore, limits: TaskLimits, declared: Declared = as_itself) -> None:
        self._store = store
        self.attendance = Attendance(store)
        """Records the callers for which tasks were found."""
        self._declared = declared
        self._most = limits.max_failed_lookups
        self._window_ms = limits.lookup_window_ms
        self._refused_until: TLRUCache[str, float] = TLRUCache(_REMEMBERED, _until, timer=time.monotonic)

    def admit(self, caller: Caller) -> None:
        """Refuse a caller with too many failures. It is not looked for it, so it learns nothing, and costs nothing.

        Raises:
            TooManyLookupsError: Until its window has ended.
        """
        if not caller.is_shared:
            self._require_few_failures(caller)

    def _require_few_failures(self, caller: Caller) -> None:
        left_ms = self._refused_ms(caller)
        if left_ms > 0 and self._most is not None:
            error = TooManyLookupsError(self._most, retry_after_ms=left_ms)
            audit.limited(caller.scope, error.limit)
            raise error

    def _refused_ms(self, caller: Caller) -> int:
        """For how long a caller is still refused."""
        until = self._refused_until.get(caller.requestor or "", 0.0)
        return max(round((until - time.monotonic()) * 1000), 0)

    async def load(self, caller: Caller, task_id: str) -> StoredTask:
        """A caller's own task.

        Raises:
            TaskNotFoundError: Unknown, expired, or another caller's.
            TooManyLookupsError: The caller has asked for too many of those.
            StoreUnavailableError: The store did not answer.
        """
        self.admit(caller)
        if not is_wire_task_id(task_id):
            # Not looked up, so not counted either: nothing can be found out in this way.
            audit.refused(caller.scope, None, "malformed")
            raise TaskNotFoundError
        stored = await self.own(caller, TaskRef(caller.scope, task_id))
        if stored is None:
            await self.missed(caller)
            raise TaskNotFoundError
        return stored

    async def own(self, caller: Caller, ref: TaskRef) -> StoredTask | None:
        """A task, if there is one and it is the caller's. A failure is noted in the audit log, but not counted.

        Raises:
            StoreUnavailableError: The store did not answer.
        """
        stored = await self._store.load(ref)
        if (reason := await self._refusal(caller, stored)) is not None:
            audit.refused(ref.scope, ref.task_id, reason)
            return None
        if stored is not None:
            await self.attendance.note(stored.record)
        return stored

    async def _refusal(self, caller: Caller, stored: StoredTask | None) -> audit.Reason | None:
        """Why a task is not shown to a caller."""
        if stored is None:
            return "unknown"
        if stored.record.issuer != caller.issuer:
            return "issuer"
        return None if await self.has_scopes(caller, stored.record) else "scopes"

    async def has_scopes(self, caller: Caller, record: TaskRecord) -> bool:
        """Whether a caller's token has the OAuth scopes that the task's component needs."""
        if caller.token_scopes is None:
            return True
        _, config = await self._declared(record.task_type, record.component)
        return caller.token_scopes.issuperset(config.required_scopes)

    async def present(self, caller: Caller, refs: Sequence[TaskRef]) -> Sequence[TaskRef]:
        """Those of several tasks that there may be for a caller. The others are counted before anything is read.

        Raises:
            TooManyLookupsError: There is none, and the caller has asked for too many of those.
            StoreUnavailableError: The store did not answer.
        """
        found = await self._store.present(refs)
        if number := len(refs) - len(found):
            await (self.failed if found else self.missed)(caller, number)
            there = set(found)
            first = next(ref for ref in refs if ref not in there)
            audit.refused(first.scope, first.task_id, "unknown", number)
        return found

    async def own_many(self, caller: Caller, refs: Sequence[TaskRef]) -> Sequence[StoredTask | None]:
        """As :meth:`own`, of several tasks together, each in its place. Failures are counted.

        Raises:
            TooManyLookupsError: None is the caller's, and it has asked for too many of those.
            StoreUnavailableError: The store did not answer.
        """
        found = await self._store.load_many(refs)
        reasons: list[audit.Reason | None] = [await self._refusal(caller, stored) for stored in found]
        if number := len(refs) - reasons.count(None):
            await (self.failed if number < len(refs) else self.missed)(caller, number)
        told: set[audit.Reason] = {reason for reason in reasons if reason is not None}
        for reason in sorted(told):
            first = refs[reasons.index(reason)]
            audit.refused(first.scope, first.task_id, reason, reasons.count(reason))
        return [stored if reason is None else None for stored, reason in zip(found, reasons, strict=True)]

    async def missed(self, caller: Caller, number: int = 1) -> None:
        """Count a caller's failures, and refuse look-ups where there are too many.

        Raises:
            TooManyLookupsError: Until its window has ended.
        """
        self._require_few_failures(caller)
        await self.failed(caller, number)

    async def failed(self, caller: Caller, number: int = 1) -> None:
        """Count a caller's failures. A store that does not answer has said so in the log, and counts none."""
        if caller.requestor is None or self._most is None or self._refused_ms(caller) > 0:
            return
        try:
            counted = await self._store.count_failed_lookups(caller.requestor, number, window_ms=self._window_ms)
        except StoreUnavailableError:
            return
        if counted.number >= self._most:
            self._refused_until[caller.requestor] = time.monotonic() + counted.left_ms / 1000
