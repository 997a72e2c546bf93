"""What a worker decides on a job for another version of its component."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mcp_celery.components.declarations import DeclaredComponents
from mcp_celery.config import TaskConfig
from mcp_celery.context import TaskContextSnapshot
from mcp_celery.engine import Change, Start, TaskRecord
from mcp_celery.errors import INTERNAL_ERROR, JobFailedError
from mcp_celery.settings import ComponentMatch
from mcp_celery.testing import MemoryRecovery, MemoryTaskBus, MemoryTaskStore
from mcp_celery.worker import HeldVersion, VersionCheck, VersionPolicy
from mcp_celery.worker.delivery import JobCall, JobRefused
from mcp_celery.worker.versions import versions_of
from tests.support.tiny_server import VERSION, TinyServer, TinySource
from tests.support.worlds import a_record

pytestmark = pytest.mark.anyio

SERVER = "1-5ca1ab1e"
"""A version that this worker does not have."""


class Stop(BaseException):
    """What no validator should raise."""


class Worker:
    """A worker with two versions of a tool, and the task of a job that it got."""

    def __init__(self) -> None:
        tiny = TinyServer("tiny")

        @tiny.tool("work", version="2")
        async def second(size: int, depth: int = 1) -> int:
            return size + depth

        @tiny.tool("work", version="1")
        async def first(size: int) -> int:
            return size

        self.tool = tiny.tools[0]
        self.components = DeclaredComponents(TinySource(tiny), {}, TaskConfig())
        self.store = MemoryTaskStore(MemoryTaskBus())
        self.recovery = MemoryRecovery(self.store.ledger)
        self.published: list[tuple[str, int]] = []

    def publish_later(self, key: str, pause_ms: int) -> bool:
        self.published.append((key, pause_ms))
        return True

    def check(self, match: ComponentMatch = "exact") -> VersionCheck:
        return VersionCheck(self.components, VersionPolicy(match, max_handbacks=1))

    async def fingerprint(self, version: str) -> str:
        found = (await self.components.find("tool", "work", {VERSION: version})).fingerprint
        assert found is not None
        return found

    async def created(self, *, fingerprint: str = SERVER, tool: str = "work", **request: Any) -> TaskRecord:
        record = replace(a_record(), component=tool, fingerprint=fingerprint)
        params = {"name": tool, "arguments": request.pop("arguments", {"size": 1})}
        await self.store.create(record, TaskContextSnapshot(protocol_version="2026-07-28", params=params, **request))
        return record

    def call(self, record: TaskRecord) -> JobCall:
        return JobCall(
            job_id=record.job_id,
            key=record.key,
            attempt=1,
            leg=1,
            retries=0,
            worker="celery@here/1",
            input_timeout_seconds=1,
            publish_later=self.publish_later,
        )

    async def decide(self, record: TaskRecord, match: ComponentMatch = "exact") -> str | None:
        assert record.fingerprint is not None
        return await self.check(match).decide(self.store, self.call(record), record.fingerprint)

    async def reason(self, record: TaskRecord) -> str | None:
        stored = await self.store.load(record.ref)
        return None if stored is None or stored.record.error is None else stored.record.error.message

    async def elsewhere(self) -> None:
        await self.recovery.beat("celery@there/1", 60_000, {SERVER: "tool:work"})


@pytest.fixture
def worker() -> Worker:
    return Worker()


async def test_of_several_versions_the_default_one_is_asked_first(worker: Worker) -> None:
    record = await worker.created()
    check, call = worker.check(), worker.call(record)
    assert await check.fingerprint(call) == await worker.fingerprint("2")
    assert await check.fingerprint(call, {VERSION: "1"}) == await worker.fingerprint("1")
    assert await check.fingerprint(worker.call(await worker.created(tool="unknown"))) == ""


async def test_the_request_may_name_another_version(worker: Worker) -> None:
    first = await worker.fingerprint("1")
    record = await worker.created(fingerprint=first, meta={VERSION: "1"})
    assert await worker.decide(record) == first
    assert worker.published == []


async def test_a_job_is_handed_back_and_published_later(worker: Worker) -> None:
    await worker.elsewhere()
    record = await worker.created()
    with pytest.raises(JobRefused):
        await worker.decide(record, "accepts")
    ((key, pause_ms),) = worker.published
    assert key == record.key
    assert 50 <= pause_ms <= 100
    assert await worker.reason(record) is None


async def test_where_no_worker_has_the_servers_version_the_task_fails_with_both(worker: Worker) -> None:
    record = await worker.created()
    with pytest.raises(JobFailedError) as failed:
        await worker.decide(record)
    assert failed.value.args[0] == INTERNAL_ERROR
    assert await worker.reason(record) == (
        "The job was not run, because it reached a worker of another version than the server's: the server has version "
        f"{SERVER} of the component, that worker has version {await worker.fingerprint('2')}, and no other live worker "
        "has the server's version"
    )
    assert str(await worker.reason(record)) in str(failed.value.args)


async def test_a_worker_without_the_component_fails_the_task_with_that_reason(worker: Worker) -> None:
    record = await worker.created(tool="unknown")
    with pytest.raises(JobFailedError):
        await worker.decide(record, "accepts")
    assert "that worker has no such component" in str(await worker.reason(record))


async def test_a_job_that_was_handed_back_too_often_fails_with_that_reason(worker: Worker) -> None:
    await worker.elsewhere()
    record = await worker.created()
    with pytest.raises(JobRefused):
        await worker.decide(record)
    assert record.fingerprint is not None
    with pytest.raises(JobFailedError):
        await worker.check().decide(worker.store, replace(worker.call(record), attempt=2), record.fingerprint)
    assert "handed back for 60 s or MCP_CELERY_MAX_HANDBACKS times" in str(await worker.reason(record))


@pytest.mark.parametrize("arguments", [{"size": 1}, {"size": 1, "depth": 2}])
async def test_with_that_setting_another_version_runs_if_it_accepts_all_arguments(
    worker: Worker, arguments: dict[str, Any]
) -> None:
    record = await worker.created(arguments=arguments)
    assert await worker.decide(record, "accepts") is None


@pytest.mark.parametrize("arguments", [{}, {"size": "large"}, {"size": 1, "colour": "red"}])
async def test_another_version_does_not_run_if_it_lacks_an_argument(worker: Worker, arguments: dict[str, Any]) -> None:
    record = await worker.created(arguments=arguments)
    with pytest.raises(JobFailedError):
        await worker.decide(record, "accepts")


async def test_a_check_that_would_end_the_worker_is_no_acceptance(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_self: object, _arguments: object) -> None:
        raise Stop

    monkeypatch.setattr(type(worker.tool.metadata), "validate_arguments", stop)
    record = await worker.created()
    with pytest.raises(JobFailedError):
        await worker.decide(record, "accepts")


async def test_a_job_that_has_ended_or_started_meanwhile_is_left_alone(worker: Worker) -> None:
    record = await worker.created()
    assert await worker.store.change(record.ref, Change(to="cancelled"))
    gone = await worker.created()
    assert await worker.store.delete(gone.ref)
    started = await worker.created()
    assert await worker.store.start(started.ref, Start(attempt=1, retries=0, at_ms=1))
    with pytest.raises(JobRefused):
        await worker.decide(started)
    # A start finds that there is no request any more.
    assert await worker.decide(record) == await worker.decide(gone) == SERVER
    assert worker.published == []


def test_a_worker_advertises_all_versions_that_it_has() -> None:
    held = [
        HeldVersion("2-b", "tool:work", None),
        HeldVersion("1-a", "tool:work", "q"),
        HeldVersion("c", "tool:x", None),
    ]
    assert versions_of(held, "tool:work") == "2-b, 1-a"
    assert versions_of(held, "tool:unknown") is None
