"""What a worker does when its command line says nothing, or only the pool."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from mcp_celery.cli.options import POOLS
from tests.support.nodes import EmbeddedStoreContainer, environment
from tests.support.programs import forked_command
from tests.support.waiting import eventually_sync


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("flags", "concurrency"),
    [
        ([], "100 (pool)"),
        (["--concurrency", "7"], "7 (pool)"),
        ([*POOLS["prefork"]], f"{os.cpu_count()} (prefork)"),
        ([*POOLS["threads"]], f"{os.cpu_count()} (thread)"),
    ],
)
def test_a_hundred_jobs_at_a_time_on_the_asyncio_pool_and_celerys_default_on_others(
    store: EmbeddedStoreContainer, tmp_path: Path, flags: list[str], concurrency: str
) -> None:
    log = tmp_path / "worker.log"
    env = environment(
        MCP_CELERY_REDIS_URL=store.url,
        MCP_CELERY_NAMESPACE="defaults",
        MCP_CELERY_SERVER="tests.support.servers.tools:server",
    )
    argv = [*forked_command("celery"), "-A", "mcp_celery", "worker", "--without-mingle", *flags]
    with log.open("wb") as out, subprocess.Popen(argv, env=env, stdout=out, stderr=out) as worker:
        try:
            found = eventually_sync(lambda: re.search(r"concurrency: (.+)", log.read_text()))
        finally:
            worker.terminate()
            worker.wait(30)
    assert found is not None
    assert found[1] == concurrency
