"""The caller's context in real workers: sealed or not, restored or refused, and expired when its token is."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from typing import Any

import pytest
import redis

from mcp_celery import Settings, TaskConfig, TaskContextSnapshot
from mcp_celery.context import CallerToken
from mcp_celery.engine import Caller, TaskView
from mcp_celery.errors import TaskNotFoundError
from mcp_celery.sealing import UNSIGNED
from mcp_celery.server.keyring import signer_with
from tests.integration.conftest import Starter, settings_for
from tests.support.live import REVISION, LiveServer, live_server
from tests.support.nodes import EmbeddedStoreContainer, Pool, WorkerProcess
from tests.support.servers import callers
from tests.support.servers.callers import Bearer
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

CALLERS = "tests.support.servers.callers:server"
OLD, NEW, OTHER = (f"{name}-key-for-tests-that-has-more-than-32-bytes" for name in ("old", "new", "other"))
ALICE = Bearer("app", "alice", "https://one.example", secret="alices-secret")
TRACE = "0af7651916cd43dd8448eb211c80319c"
REFUSED = "The request's context cannot be restored, so the job cannot run"


def snapshot_of(bearer: Bearer | None, **values: Any) -> TaskContextSnapshot:
    token = None
    if bearer is not None:
        found = callers.access_token(bearer.token)
        token = CallerToken(**found.model_dump())
    return TaskContextSnapshot(protocol_version=REVISION, token=token, request_id="request-7", **values)


def asked_by(bearer: Bearer | None, **values: Any) -> dict[str, Any]:
    """What a bearer's request carries."""
    caller = Caller() if bearer is None else Caller(bearer.scope, bearer.issuer or None)
    return {"caller": caller, "snapshot": snapshot_of(bearer, **values)}


@pytest.fixture(scope="session", params=["plain", "sealed"])
def kept(request: pytest.FixtureRequest) -> str:
    """How snapshots are kept."""
    return request.param


@pytest.fixture(scope="session")
def settings(store: EmbeddedStoreContainer, pool: Pool, kept: str) -> Settings:
    if kept == "plain":
        return settings_for(store, f"callers-plain-{pool}")
    return settings_for(store, f"callers-sealed-{pool}", encryption_keys=f"{NEW},{OLD}")


@pytest.fixture(scope="session")
def callers_worker(shared: Starter, settings: Settings, pool: Pool) -> Generator[WorkerProcess]:
    worker = shared.worker(CALLERS, pool, settings)
    yield worker
    worker.teardown()


@asynccontextmanager
async def serving(settings: Settings) -> AsyncGenerator[LiveServer]:
    async with live_server(callers.build, settings) as server:
        yield server


@pytest.fixture
async def live(settings: Settings, callers_worker: WorkerProcess) -> AsyncGenerator[LiveServer]:
    async with serving(settings) as server:
        yield server


@pytest.mark.smoke
@pytest.mark.each_pool
@pytest.mark.shows("C7")
async def test_a_job_finds_its_caller_and_its_request(live: LiveServer, kept: str) -> None:
    asked = asked_by(
        ALICE,
        headers={"x-tenant": "acme"},
        session_id="session-9",
        client_info={"name": "tester", "version": "1"},
        client_capabilities={"sampling": {}, "extensions": {"io.example/x": {}}},
        progress_token="progress-3",
        traceparent=f"00-{TRACE}-b7ad6b7169203331-01",
        tracestate="vendor=1",
        meta={"example.com/note": "passed on"},
    )
    found = await live.structured("look", **asked)
    assert found.pop("task")
    assert found == {
        "token": {
            "token": ALICE.token if kept == "sealed" else "",
            "client_id": "app",
            "scopes": ["use"],
            "subject": "alice",
            "claims": {"iss": "https://one.example", "note": "claim-of-alice"},
        },
        "scope": "app|alice",
        "request": "request-7",
        "headers": {"x-tenant": "acme"},
        "tenant": "acme",
        "session": "session-9",
        "client": "tester",
        "capabilities": {"sampling": {}, "extensions": {"io.example/x": {}}},
        "meta": {
            "progress_token": "progress-3",
            "traceparent": f"00-{TRACE}-b7ad6b7169203331-01",
            "tracestate": "vendor=1",
            "example.com/note": "passed on",
        },
        "span": f"{TRACE}-b7ad6b7169203331",
        "server": "callers",
    }


@pytest.mark.shows("C7")
async def test_an_anonymous_job_finds_no_caller(live: LiveServer) -> None:
    for _ in range(3):  # whichever process or thread takes it
        await live.structured("look", **asked_by(ALICE, session_id="session-9", headers={"x-tenant": "acme"}))
        found = await live.structured("look", **asked_by(None))
        names = ("token", "scope", "headers", "session", "client", "capabilities", "span", "meta")
        assert [found[name] for name in names] == [None] * 7 + [{}]


async def test_a_resolver_of_a_tool_sees_the_caller(live: LiveServer) -> None:
    assert await live.text_of("greet", **asked_by(ALICE)) == "Hello, app with request request-7"
    assert await live.text_of("greet", **asked_by(None)) == "Hello, nobody with request request-7"


@pytest.mark.shows("C7")
async def test_an_expired_token_is_not_given_to_the_job(live: LiveServer) -> None:
    found = await live.structured("look", **asked_by(replace(ALICE, expires_at=int(time.time()) - 1)))
    assert (found["token"], found["scope"]) == (None, "app|alice")


@pytest.mark.shows("C7")
async def test_a_token_may_expire_while_its_job_runs(live: LiveServer) -> None:
    found: dict[str, Any] = {"before": {"token": None}}
    for seconds in (2, 4, 8, 16):  # a machine may be too busy to begin the job in time
        if found["before"]["token"] is None:
            bearer = replace(ALICE, expires_at=int(time.time()) + seconds)
            found = await live.structured("outlive", **asked_by(bearer))
    assert found["before"]["token"]["subject"] == "alice"
    assert found["after"] == {**found["before"], "token": None}


@pytest.mark.smoke
@pytest.mark.shows("C7")
async def test_tasks_of_a_job_whose_token_has_expired_keep_its_issuer(live: LiveServer) -> None:
    """And those of a task that such a job has made. Another subject of the same name cannot read them."""
    expired = replace(ALICE, expires_at=int(time.time()) - 1)
    child = await live.text_of("delegate", {"generations": 2}, **asked_by(expired))
    view = await live.engine.wait(Caller(ALICE.scope, ALICE.issuer), child)
    assert view.result is not None, view.record
    grandchild = view.result["content"][0]["text"]
    for task_id in (child, grandchild):
        record = (await live.engine.wait(Caller(ALICE.scope, ALICE.issuer), task_id)).record
        assert (record.status, record.issuer) == ("completed", ALICE.issuer)
        for stranger in (Caller(ALICE.scope, None), Caller(ALICE.scope, "https://two.example")):
            with pytest.raises(TaskNotFoundError):
                await live.engine.get(stranger, task_id)


def reason_of(view: TaskView) -> tuple[str, str | None, int | None]:
    error = view.record.error
    return view.record.status, view.record.status_message, None if error is None else error.code


@pytest.mark.shows("C7")
@pytest.mark.parametrize(
    ("kept", "keys"),
    [("sealed", None), ("sealed", OTHER), ("sealed", f"{OTHER},{NEW}"), ("plain", NEW)],
    indirect=["kept"],
    scope="session",
    ids=["no key", "another key", "a newer key", "a key, and none here"],
)
async def test_a_job_that_was_not_sealed_for_this_worker_does_not_run(
    settings: Settings, callers_worker: WorkerProcess, keys: str | None
) -> None:
    values = settings.model_dump(exclude_unset=True, exclude={"encryption_keys"})
    async with serving(Settings.load(**values, encryption_keys=keys)) as other:
        view = await other.run("look", **asked_by(ALICE))
    assert reason_of(view) == ("failed", REFUSED, -32603)
    told = [line for line in callers_worker.logs_since_mark().splitlines() if "cannot be restored" in line]
    assert len([line for line in told if view.record.task_id in line and "WARNING" in line]) == 1
    assert "MCP_CELERY_ENCRYPTION_KEYS" in told[0]


@pytest.mark.shows("C7")
@pytest.mark.parametrize("kept", ["sealed"], indirect=True, scope="session")
async def test_servers_that_still_seal_with_the_old_key_are_served(
    settings: Settings, callers_worker: WorkerProcess
) -> None:
    values = settings.model_dump(exclude_unset=True, exclude={"encryption_keys"})
    async with serving(Settings.load(**values, encryption_keys=f"{OLD},{NEW}")) as other:
        found = await other.structured("look", **asked_by(ALICE))
    assert found["token"]["token"] == ALICE.token


@pytest.mark.smoke
@pytest.mark.shows("C7")
@pytest.mark.parametrize(
    ("kept", "damage"),
    [
        *(("sealed", damage) for damage in ("copied", "changed", "gone", "nonsense")),
        ("plain", "gone"),
        ("plain", "nonsense"),
    ],
    indirect=["kept"],
    scope="session",
)
async def test_a_snapshot_that_was_tampered_with_does_not_run(live: LiveServer, damage: str) -> None:
    alices = await live.submit("look", config=TaskConfig(queue=callers.NOBODYS_QUEUE), **asked_by(ALICE))
    bob = asked_by(replace(ALICE, subject="bob"))
    bobs = await live.submit("look", config=TaskConfig(queue=callers.NOBODYS_QUEUE), **bob)
    own, others = (live.keys.snapshot(one.scope, one.task_id) for one in (bobs, alices))
    with closing(redis.Redis.from_url(live.settings.redis_url)) as client:
        written = client.get(own)
        assert isinstance(written, bytes)
        match damage:
            case "copied":
                client.copy(others, own, replace=True)
            case "changed":
                client.set(own, written[:-5] + b"AAAAA", keepttl=True)
            case "gone":
                client.delete(own)
            case _:
                client.set(own, b"nonsense", keepttl=True)
    await live.publish_again(bobs, live.submission("look", **bob))
    assert reason_of(await live.end_of(bobs)) == ("failed", REFUSED, -32603)
    await live.publish_again(alices, live.submission("look", **asked_by(ALICE)))
    assert (await live.end_of(alices)).record.status == "completed"


@pytest.mark.shows("C7")
@pytest.mark.parametrize("kept", ["sealed"], indirect=True, scope="session")
async def test_a_message_that_was_published_without_the_keys_changes_nothing(
    live: LiveServer, callers_worker: WorkerProcess
) -> None:
    record = await live.submit("look", config=TaskConfig(queue=callers.NOBODYS_QUEUE), **asked_by(ALICE))
    submission = live.submission("look", **asked_by(ALICE))
    for forger in (UNSIGNED, signer_with([OTHER])):
        await live.publish_again(record, submission, signer=forger)

    def refused() -> list[str]:
        lines = callers_worker.logs_since_mark().splitlines()
        return [line for line in lines if record.task_id in line and "does not run: its message is not signed" in line]

    await eventually(lambda: len(refused()) == 2, what="both are refused")
    current = await live.now(record)
    assert (current.status, current.claim, current.revision) == ("working", None, 1)
    await live.publish_again(record, submission)
    assert (await live.end_of(record)).record.status == "completed"
