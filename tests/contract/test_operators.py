"""The operators' commands over records in a real Redis, without servers and workers."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

import click
import pytest
from click.testing import CliRunner, Result

from mcp_celery.cli.main import cli
from mcp_celery.engine import Change, TaskRecord
from tests.support.worlds import SNAPSHOT, RedisWorld, a_record

pytestmark = pytest.mark.anyio

NAMESPACE: Final = "contract"
"""Of the worlds' tasks."""


def variables(world: RedisWorld) -> dict[str, str]:
    return {"MCP_CELERY_REDIS_URL": world.url, "MCP_CELERY_KEY_PREFIX": world.prefix, "COLUMNS": "200"}


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
    monkeypatch.setattr(logging.getLogger("mcp_celery"), "propagate", True)  # undoes what the command sets
    records = [await ended(in_redis) for _ in range(3)]
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + 20 * 10**9)
    done = await called(in_redis, "tasks", "purge", "--namespace", NAMESPACE, "--older-than", "0s", "--yes", "--json")
    assert (done.exit_code, done.output) == (0, '{"purged": 3}\n')
    assert [await in_redis.store.load(record.ref) for record in records] == [None] * 3
