"""The operators' commands over records in a real Redis, without servers and workers."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Final, cast

import click
import pytest
from click.testing import CliRunner, Result

from mcp_celery.broker.consumers import CeleryWorker
from mcp_celery.cli.main import cli
from mcp_celery.default_app import default_app
from mcp_celery.engine import Change, TaskRecord, now_ms
from mcp_celery.engine.followup_jobs import as_itself
from mcp_celery.engine.recovery.model import RecoveryPolicy
from mcp_celery.engine.recovery.reaper import Reaper
from mcp_celery.operate.actions import purgeable, purged
from mcp_celery.operate.doctor import workers
from mcp_celery.operate.site import Open
from mcp_celery.server.celery_tasks import CeleryTasks
from mcp_celery.store.inspection import RedisInspection
from mcp_celery.testing import MemoryTaskQueue
from tests.support.programs import ROOT, forked_command
from tests.support.terminal import at_a_terminal
from tests.support.waiting import eventually
from tests.support.worlds import SNAPSHOT, RedisWorld, a_record

pytestmark = pytest.mark.anyio

GIVE_UP_SECONDS: Final = 180.0
NAMESPACE: Final = "contract"
"""Of the worlds' tasks."""


def variables(world: RedisWorld) -> dict[str, str]:
    return {"MCP_CELERY_REDIS_URL": world.url, "MCP_CELERY_KEY_PREFIX": world.prefix, "COLUMNS": "200"}


async def typed(world: RedisWorld, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """What a command does as a process."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MCP_CELERY_")}
    return await asyncio.to_thread(
        subprocess.run,
        [*forked_command("mcp_celery"), *arguments],
        capture_output=True,
        text=True,
        timeout=GIVE_UP_SECONDS,
        cwd=ROOT,
        env={**env, **variables(world), **more},
        check=False,
    )


@pytest.fixture(autouse=True)
def undo_what_commands_set(monkeypatch: pytest.MonkeyPatch) -> None:
    # Celery reads the configuration of the default app once in a process, which a command would do with its own store.
    _ = default_app.conf.broker_url
    monkeypatch.setattr(logging.getLogger("mcp_celery"), "propagate", True)


async def called(world: RedisWorld, *arguments: str) -> Result:
    """What a command does in this process."""
    assert isinstance(cli, click.Group)
    return await asyncio.to_thread(CliRunner(env=variables(world)).invoke, cli, [*arguments])


async def ended(world: RedisWorld) -> TaskRecord:
    record = a_record()
    await world.store.create(record, SNAPSHOT)
    assert await world.store.change(record.ref, Change(to="cancelled", status_message=None))
    return record


async def test_ended_tasks_are_deleted_once_although_the_clock_of_the_operator_is_ahead(
    in_redis: RedisWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [await ended(in_redis) for _ in range(3)]
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + 20 * 10**9)
    done = await called(in_redis, "tasks", "purge", "--namespace", NAMESPACE, "--older-than", "0s", "--yes", "--json")
    assert (done.exit_code, done.output) == (0, '{"purged": 3}\n')
    assert [await in_redis.store.load(record.ref) for record in records] == [None] * 3


async def test_a_cancellation_of_which_the_broker_does_not_hear_says_that_the_job_may_run_on(
    in_redis: RedisWorld,
) -> None:
    record = a_record()
    await in_redis.store.create(record, SNAPSHOT)
    nowhere = {"MCP_CELERY_BROKER_URL": "redis://127.0.0.1:1/0"}
    done = await typed(in_redis, "tasks", "cancel", record.key, "--namespace", NAMESPACE, "--json", **nowhere)
    told = {"task": record.shown_id, "status": "cancelled", "changed": True, "revoked": False}
    assert (done.returncode, json.loads(done.stdout)) == (1, told)
    said = f"Error: task {record.shown_id} is cancelled, but the broker did not answer: its job may run on\n"
    assert done.stderr == said


async def test_a_list_over_several_servers_has_the_newest_tasks_of_all_and_says_that_there_are_more(
    in_redis: RedisWorld,
) -> None:
    other = RedisWorld(in_redis.url, prefix=in_redis.prefix, namespace="another")
    now = now_ms()
    try:
        for age, world in enumerate((in_redis, other, in_redis, other)):
            await world.store.create(replace(a_record(), created_at_ms=now - age * 1_000), SNAPSHOT)
    finally:
        await other.aclose()
    done = await called(in_redis, "tasks", "list", "--limit", "3", "--json")
    assert [json.loads(line)["server"] for line in done.stdout.splitlines()] == [NAMESPACE, "another", NAMESPACE]
    assert done.stderr == "There are more than 3: raise --limit, or select fewer with the other options.\n"


async def test_a_list_that_is_watched_says_that_there_are_more_where_a_small_terminal_shows_it(
    in_redis: RedisWorld,
) -> None:
    for _ in range(12):
        await in_redis.store.create(a_record(), SNAPSHOT)
    command = [*forked_command("mcp_celery"), "tasks", "list", "--watch", "--limit", "11"]
    env = {**os.environ, **variables(in_redis), "TERM": "xterm", "COLUMNS": "80"}
    with at_a_terminal(command, folder=ROOT, env=env, columns=80, rows=12) as terminal:
        await asyncio.to_thread(terminal.until, "There are more than 11")
        terminal.interrupt()
        assert await asyncio.to_thread(terminal.end) == 0


async def test_the_doctor_knows_the_heartbeats_of_a_worker_that_starts_while_the_workers_are_asked(
    in_redis: RedisWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_app: object) -> dict[str, CeleryWorker]:
        in_redis.client.zadd(in_redis.keys.workers, {"worker@host/1": now_ms() + 15_000})
        in_redis.client.expire(in_redis.keys.workers, 60)
        return {"worker@host": CeleryWorker("worker@host", ("mcp.contract",))}

    def tell(*_: object) -> dict[str, object]:
        return {}

    monkeypatch.setattr(workers, "celery_workers", start)
    monkeypatch.setattr(workers, "told_by_workers", tell)
    opened = Open(NAMESPACE, in_redis.store, RedisInspection(in_redis.store))
    answers = await workers.ask_workers(cast("CeleryTasks", SimpleNamespace(celery=None)), opened)
    assert [one.node for one in answers.leased] == ["worker@host"]


async def test_the_results_of_deleted_tasks_are_forgotten_in_another_result_backend(in_redis: RedisWorld) -> None:
    record, forgotten = await ended(in_redis), list[str]()

    class Elsewhere:
        async def forget(self, job_ids: Sequence[str]) -> None:
            forgotten.extend(job_ids)

    opened = Open(NAMESPACE, in_redis.store, RedisInspection(in_redis.store))
    await purged(opened, await purgeable(opened, older_than_ms=0, most=10))
    reaper = Reaper(
        store=in_redis.recovery(),
        tasks=in_redis.store,
        queue=MemoryTaskQueue(),
        results=Elsewhere(),
        declared=as_itself,
        policy=RecoveryPolicy(heartbeat_ms=50, max_redeliveries=1),
    )

    async def are_forgotten() -> bool:
        await reaper.sweep()
        return forgotten == record.job_ids

    await eventually(are_forgotten)
