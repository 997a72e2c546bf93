"""Celery's events as hints: heard while there is something to listen for, and again after the broker was away."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import cast

import pytest
from celery import Celery

from mcp_celery.common.redis_translation import celery_url
from mcp_celery.engine.foreign.poller import Watcher
from mcp_celery.engine.foreign.started import Beginnings
from mcp_celery.exposed import JobEvents, events
from mcp_celery.server.connections import ended
from tests.integration.conftest import Starter
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

KEY = "anon:task456:tool:sell"


class Heard:
    """What JobEvents needs of a watcher, and of who notes beginnings."""

    def __init__(self) -> None:
        self.open = True
        self.hints: list[str] = []
        self.begun: list[str] = []

    @property
    def watches(self) -> bool:
        return self.open

    async def note(self, key: str) -> None:
        self.begun.append(key)

    def hint(self, key: str) -> None:
        self.hints.append(key)


def listeners() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "mcp-celery-events"]


@asynccontextmanager
async def listening(app: Celery, heard: Heard) -> AsyncGenerator[None]:
    task = asyncio.create_task(JobEvents(app, cast(Watcher, heard), cast(Beginnings, heard)).run())
    try:
        yield
    finally:
        await ended(task)
    assert listeners() == []


def send(app: Celery, kind: str, job_id: str) -> None:
    """As a worker does; a broker that is away is not waited for."""
    with suppress(OSError, *app.connection().connection_errors), app.connection() as connection:
        connection.connect()
        app.events.Dispatcher(connection).send(kind, uuid=job_id)


async def hears(app: Celery, heard: Heard) -> None:
    def has_heard() -> bool:
        send(app, "task-succeeded", KEY)
        return bool(heard.hints)

    await eventually(has_heard, what="an event is heard")


async def test_events_of_other_jobs_or_without_a_change_are_no_hints(own: Starter) -> None:
    app, heard = Celery(broker=celery_url(own.valkey().url), set_as_current=False), Heard()
    async with listening(app, heard):
        await hears(app, heard)
        for kind, job_id in [("task-received", KEY), ("task-failed", "4c4b0ba4-0d8a"), ("worker-heartbeat", KEY)]:
            send(app, kind, job_id)
        send(app, "task-failed", "anon:task457:tool:sell!2")
        await eventually(lambda: heard.hints[-1] != KEY)
    assert set(heard.hints) == {KEY, "anon:task457:tool:sell"}
    assert heard.begun == []
    app.close()


@pytest.mark.smoke
async def test_a_job_that_begins_is_noted_before_its_result_is_read(own: Starter) -> None:
    app, heard = Celery(broker=celery_url(own.valkey().url), set_as_current=False), Heard()
    async with listening(app, heard):
        await hears(app, heard)
        send(app, "task-started", "anon:task457:tool:sell")
        await eventually(lambda: heard.hints[-1] != KEY)
        assert heard.begun == ["anon:task457:tool:sell"]
    app.close()


async def test_the_listener_listens_only_while_a_job_is_open(own: Starter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "CHECK_SECONDS", 0.01)
    monkeypatch.setattr(events, "LINGER_SECONDS", 0.05)
    app, heard = Celery(broker=celery_url(own.valkey().url), set_as_current=False), Heard()
    heard.open = False
    async with listening(app, heard):
        heard.open = True
        await eventually(listeners)
        heard.open = False
        await eventually(lambda: not listeners())
    app.close()


@pytest.mark.smoke
async def test_events_are_received_again_when_the_broker_is_back(
    own: Starter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(events, "PAUSE_SECONDS", 0.05)
    broker = own.valkey()
    app, heard = Celery(broker=celery_url(broker.url), set_as_current=False), Heard()
    async with listening(app, heard):
        await hears(app, heard)
        broker.stop()
        await eventually(lambda: "exposed jobs are only polled" in caplog.text)
        heard.hints.clear()
        broker.start()
        broker.ready()
        await hears(app, heard)
    assert caplog.text.count("exposed jobs are only polled") == 1
    app.close()


class HeardOnce(Heard):
    """At the first look a job was open, and at none after it."""

    looks = 0

    @property
    def watches(self) -> bool:
        self.looks += 1
        return self.looks == 1


async def test_a_listener_goes_on_for_a_while_when_there_is_nothing_to_listen_for(
    own: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "CHECK_SECONDS", 0.01)
    app, heard = Celery(broker=celery_url(own.valkey().url), set_as_current=False), HeardOnce()
    async with listening(app, heard):
        await eventually(lambda: heard.looks > 3)
        await hears(app, heard)
    app.close()


async def test_a_broker_that_does_not_answer_is_logged_once_and_delays_no_shutdown(
    own: Starter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(events, "PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(events, "ANSWER_SECONDS", 0.1)
    broker = own.valkey()
    app, heard = Celery(broker=celery_url(broker.url), set_as_current=False), Heard()
    broker.send(signal.SIGSTOP)
    try:
        async with listening(app, heard):
            await eventually(lambda: "exposed jobs are only polled" in caplog.text)
            await eventually(listeners)  # the next try
    finally:
        broker.send(signal.SIGCONT)
    assert caplog.text.count("exposed jobs are only polled") == 1
    app.close()
