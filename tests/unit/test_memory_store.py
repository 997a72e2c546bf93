"""The store in memory forgets what is over, and stays within bounds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mcp_celery.engine import (
    RECORD_BYTES,
    Change,
    Claim,
    EncodedResult,
    ForeignWork,
    JobOutcome,
    TaskRecord,
    success,
)
from mcp_celery.engine.recovery.model import Expiring, RecoveryPolicy
from mcp_celery.errors import StoreFullError
from mcp_celery.testing import MemoryJobLedger, MemoryOpenTasks, MemoryRecovery, MemoryTaskBus, MemoryTaskStore, bus
from mcp_celery.testing import kept as kept_module
from mcp_celery.testing import ledger as ledger_module
from tests.support.worlds import ALICE, SNAPSHOT, a_record, open_tasks

POLICY = RecoveryPolicy(heartbeat_ms=1_000, max_redeliveries=1)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def a_store(clock: Clock, *, max_bytes: int | None = None) -> MemoryTaskStore:
    return MemoryTaskStore(MemoryTaskBus(), clock=clock, max_bytes=max_bytes)


def create(ledger: MemoryJobLedger, clock: Clock, *, ttl_ms: int = 1_000, **values: object) -> TaskRecord:
    record = replace(a_record(ttl_ms=ttl_ms), created_at_ms=clock.now, **values)  # pyright: ignore[reportArgumentType]
    ledger.create(record, SNAPSHOT, open_tasks("alice", 100, bytes_=10**9))
    return record


def test_a_task_leaves_nothing_when_its_time_is_over(clock: Clock) -> None:
    ledger = a_store(clock).ledger
    for worker in ("w1", "w2"):
        record = create(ledger, clock, work=ForeignWork())
        assert ledger.claim(record.ref, attempt=1, claim=Claim(worker, 1))
        ledger.due[record.ref] = 1
    clock.now += 1_000
    assert ledger.count() == 0
    assert ledger.page(ALICE, before=None, limit=10) == []
    kept = ledger._kept  # pyright: ignore[reportPrivateUsage]
    assert (kept.claims, kept.due, kept.looks) == ({}, {}, {})
    bounds = ("expired", "_numbers", "_max_bytes", "_on_end")
    left = {name: value for name, value in vars(kept).items() if name not in bounds}
    assert not any(left.values()), left


@pytest.mark.anyio
async def test_the_reaper_learns_of_what_expired_until_it_forgets_it(clock: Clock) -> None:
    store = a_store(clock)
    recovery = MemoryRecovery(store.ledger)
    begun, ended = create(store.ledger, clock), create(store.ledger, clock)
    assert store.ledger.claim(begun.ref, attempt=1, claim=Claim("w1", 1))
    assert await store.change(ended.ref, Change(to="cancelled", at_ms=clock.now))
    clock.now += 1_500
    found = await recovery.sweep("me", POLICY)
    assert found is not None
    assert list(found.expiring) == [
        Expiring(begun.key, -500, status="working", worker="w1"),
        Expiring(ended.key, -500, status="cancelled"),
    ]
    await recovery.forget(found.expiring)
    found = await recovery.sweep("me", POLICY)
    assert found is not None
    assert found.expiring == []


def test_a_ttl_that_is_shortened_or_extended_ends_at_its_time(clock: Clock) -> None:
    ledger = a_store(clock).ledger
    brief, usual = create(ledger, clock), create(ledger, clock)
    ledger.retire(brief.ref, clock.now + 10)
    clock.now += 10
    assert ledger.load(brief.ref) is None
    assert ledger.load(usual.ref) is not None


def test_all_tasks_together_take_no_more_than_they_may(clock: Clock) -> None:
    size = RECORD_BYTES + len(SNAPSHOT.to_json())
    ledger = a_store(clock, max_bytes=2 * size).ledger
    first = create(ledger, clock)
    create(ledger, clock)
    with pytest.raises(StoreFullError):
        create(ledger, clock)
    assert ledger.delete(first.ref)
    create(ledger, clock)
    clock.now += 1_000
    create(ledger, clock)


def test_a_result_counts_and_is_forgotten_with_its_task(clock: Clock) -> None:
    ledger = a_store(clock, max_bytes=100_000).ledger
    record = create(ledger, clock)
    change = replace(success(JobOutcome({"content": []})), attempt=1)
    assert ledger.finish(record.ref, change, EncodedResult("", '["SUCCESS", "' + "x" * 99_000 + '"]'))
    with pytest.raises(StoreFullError):
        create(ledger, clock)
    clock.now += 1_000
    create(ledger, clock)


def test_the_number_of_remembered_expired_tasks_and_requestors_is_bounded(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_module, "MOST_EXPIRED", 3)
    monkeypatch.setattr(ledger_module, "MOST_REQUESTORS", 3)
    ledger = a_store(clock).ledger
    for number in range(10):
        create(ledger, clock)
        ledger.count_failed_lookups(f"requestor-{number}", 1, window_ms=100)
        clock.now += 1_000
    assert ledger.count() == 0
    assert len(ledger._kept.expired) == 3  # pyright: ignore[reportPrivateUsage]
    assert len(ledger._failed) <= 3  # pyright: ignore[reportPrivateUsage]
    assert ledger.bus.told.maxlen == bus.MOST_TOLD


@pytest.mark.anyio
async def test_open_tasks_of_exposed_jobs_are_shared(clock: Clock) -> None:
    store = a_store(clock)
    first, second = MemoryOpenTasks(store.ledger), MemoryOpenTasks(store.ledger)
    record = create(store.ledger, clock, work=ForeignWork())
    assert list((await first.due(100, 10)).records) == [record]
    assert ((await second.due(100, 10)).records, (await second.due(100, 10)).open) == ([], 1)
    await second.hurry([record.key])
    assert list((await second.due(100, 10)).records) == [record]
