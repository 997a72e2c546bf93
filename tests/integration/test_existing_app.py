"""The example of an existing app, with the commands that its docstring gives."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Generator

import pytest

import workers.existing_app
from mcp_celery.common.redis_translation import celery_url
from tests.support.deployment import Deployment, deployed
from tests.support.nodes import ROOT, EmbeddedStoreContainer
from tests.support.programs import forked_command
from tests.support.waiting import eventually
from tests.support.wire import Wire, follow

pytestmark = pytest.mark.anyio

APP, SPEC = "workers.existing_app", "workers.existing_app.mcp:server"
REPORT = {"year": 2026, "months": 12, "orders": 598}


@pytest.fixture(scope="module")
def shop(store: EmbeddedStoreContainer) -> Generator[Deployment]:
    url = celery_url(store.url)
    settings = {
        "SHOP_BROKER_URL": url,
        "MCP_CELERY_NAMESPACE": "",
        "MCP_CELERY_KEY_PREFIX": f"shop:{os.urandom(2).hex()}",
    }
    with (
        deployed(store.url, "shop", spec=SPEC, settings=settings, app=APP) as found,
        found.worker("prefork", concurrency=4),
    ):
        yield found


def test_the_examples_documented_commands_are_the_ones_that_are_run_here() -> None:
    told = re.findall(r"^    ((?:celery|mcp-celery) .*?)(?:  +#.*)?$", str(workers.existing_app.__doc__), re.MULTILINE)
    assert told[:2] == [f"celery -A {APP} worker", f"mcp-celery serve {SPEC}"]
    assert told[2].endswith("/mcp export_orders --arg year=2026")


@pytest.mark.smoke
@pytest.mark.shows("C9")
async def test_a_tool_runs_a_job_of_the_shop(shop: Deployment) -> None:
    async with Wire(shop.serve()) as wire:
        seen = await follow(wire, (await wire.create("export_orders", year=2026))["taskId"])
        compared = await follow(wire, (await wire.create("compare_years", first=2025, second=2026))["taskId"])
    assert seen[-1]["result"]["structuredContent"] == REPORT
    assert any(state.get("statusMessage", "").startswith("2026-0") for state in seen[:-1])
    assert "more orders" in compared[-1]["result"]["structuredContent"]["result"]


async def test_the_shops_log_shows_whose_job_it_is_and_not_the_right_to_read_it(shop: Deployment) -> None:
    """The shop's worker has Celery's own format, and anonymous callers."""
    async with Wire(shop.serve()) as wire:
        task_id = (await wire.create("compare_years", first=2025, second=2026))["taskId"]
        await follow(wire, task_id)
    log = "worker-prefork.log"
    await eventually(lambda: f"[anon:{task_id[:8]}…:tool:compare_years] succeeded" in shop.logs()[log])
    assert f"[anon:{task_id[:8]}…:tool:compare_years] received" in shop.logs()[log]
    assert [name for name, text in shop.logs().items() if task_id in text] == []


@pytest.mark.shows("C9")
def test_the_shops_own_jobs_run_beside_it(shop: Deployment) -> None:
    code = """
import json
from workers.existing_app import reports
jobs = reports.build.delay(2026), reports.build_by_quarters(2026)()
print(json.dumps([job.get(timeout=60) for job in jobs]))
"""
    argv = [*forked_command("tests.support.run_text"), code]
    done = subprocess.run(argv, env=shop.env(), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [REPORT, REPORT]
