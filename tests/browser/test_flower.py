"""Flower in a browser: jobs can be told apart and found, contents cannot be seen, and Revoke reaches the MCP client."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncGenerator, Callable, Generator
from pathlib import Path

import pytest
from celery import Celery
from mcp.server import MCPServer
from selenium import webdriver

from mcp_celery import Settings, TaskConfig, TaskContextSnapshot
from mcp_celery.engine import Caller, Submission, TaskRecord
from mcp_celery.keys import build_task_key, celery_job_id, is_shortened
from mcp_celery.server.celery_tasks import CeleryTasks
from tests.browser.conftest import HELD_JOBS, Page
from tests.browser.reports import ALICE, ARCHIVE, ISSUER, TOKEN
from tests.support.deployment import ROOT, Deployment
from tests.support.flower import Flower, run_flower
from tests.support.programs import forked_command
from tests.support.waiting import eventually
from tests.support.wire import JSON, REVISION, Wire, follow

pytestmark = pytest.mark.anyio

SCOPE = f"app|{ALICE}"
PASSWORD = "hunter2-and-more"
PATIENCE_SECONDS = 60.0
Picture = Callable[[str], None]


@pytest.fixture
async def wire(mcp_url: str) -> AsyncGenerator[Wire]:
    async with Wire(mcp_url, token=TOKEN) as wire:
        yield wire


@pytest.fixture
def gate(tmp_path: Path) -> Generator[Path]:
    """Holds a job until it is touched, at the latest when the test has ended."""
    path = tmp_path / "gate"
    yield path
    release(path)


def release(gate: Path) -> None:
    gate.touch()


def job_id(task: JSON, tool: str) -> str:
    return celery_job_id(build_task_key(SCOPE, task["taskId"], "tool", tool))


async def test_the_list_says_whose_tasks_run_and_shows_no_contents(
    wire: Wire, page: Page, flower: Flower, picture: Picture
) -> None:
    tasks = [await wire.create("build_report", year=year, password=PASSWORD) for year in (2024, 2025)]
    for task in tasks:
        assert (await follow(wire, task["taskId"]))[-1]["status"] == "completed"
    page.open("/tasks")
    for task in tasks:
        page.until("the job is SUCCESS", f"tr[id='{job_id(task, 'build_report')}'] .text-bg-success")
    assert all(f"{SCOPE} · tool build_report" in row for row in page.rows()[:2]), page.rows()
    assert "2025" in page.source
    picture("flower-tasks.png")
    shown = [page.source, *(flower.get(path) for path in ("/api/tasks", f"/task/{job_id(tasks[0], 'build_report')}"))]
    for text in shown:
        assert "build_report" in text
        assert PASSWORD not in text
        assert TOKEN not in text
    assert flower.asked(f"/api/task/result/{job_id(tasks[0], 'build_report')}").status_code == 503  # no result backend


async def test_a_task_is_found_by_scope_and_by_component(wire: Wire, page: Page) -> None:
    mine = job_id(await wire.create("build_report", year=2001, password=PASSWORD), "build_report")
    other = job_id(await wire.create("leave_a_mark", path="."), "leave_a_mark")
    page.open("/tasks")
    page.until("both jobs are listed", f"tr[id='{other}']")
    page.until("both jobs are listed", f"tr[id='{mine}']")
    for text, found in {
        "id.example": {mine, other},
        "app~7Chttps~3A~2F~2Fid.example~2Falice": {mine, other},
        "name:tool.leave_a_mark": {other},
        "id.example leave_a_mark": {other},
        f'"{mine}"': {mine},
    }.items():
        page.search(text)
        await eventually(lambda found=found: found == page.ids() & {mine, other}, seconds=PATIENCE_SECONDS)
    page.search("nobody-at-all")
    await eventually(lambda: not page.rows(), seconds=PATIENCE_SECONDS)


@pytest.mark.parametrize("name", ["2025~north.pdf", "x" * 80], ids=["whole", "shortened"])
async def test_the_page_of_a_task_with_uris_in_its_key_opens(
    name: str, deployment: Deployment, page: Page, picture: Picture
) -> None:
    record = await read_as_task(deployment, f"archive://top/{name}")
    assert record.status == "completed", record
    assert is_shortened(record.job_id) is (len(name) == 80)
    page.open("/tasks")
    page.until("the job is listed", f"tr[id='{record.job_id}'] .text-bg-success")
    page.find(f"tr[id='{record.job_id}'] a[href*='/task/']")[0].click()
    await eventually(lambda: bool(page.find("#task-page")), seconds=PATIENCE_SECONDS)
    details = page.details()
    assert page.find(".task-uuid-value code")[0].text == record.job_id
    assert details["Status"] == "SUCCESS"
    assert details["Result"] == "<completed>"
    if is_shortened(record.job_id):
        assert details["Arguments"].startswith("digest-")
    else:
        assert details["Arguments"] == f"{SCOPE} · resource archive://top/{name}"
        picture("flower-task.png")


async def read_as_task(deployment: Deployment, uri: str) -> TaskRecord:
    """Read a resource as a task, for which revision 2026-07-28 has no request, and wait for its end."""
    settings = Settings.load(redis_url=deployment.store_url, namespace=deployment.namespace)
    app = Celery(broker=settings.celery_broker_url, backend=settings.celery_result_backend, set_as_current=False)
    tasks = CeleryTasks(celery=app, settings=settings)
    tasks.install(MCPServer("reports"))
    submission = Submission(
        caller=Caller(SCOPE, ISSUER),
        task_type="resource",
        component=uri,
        declared_as=ARCHIVE,
        config=TaskConfig(show_arguments=["shelf", "name"]),
        snapshot=TaskContextSnapshot(protocol_version=REVISION, params={"uri": uri}, request_id="request-1"),
    )
    async with tasks.running(), asyncio.timeout(PATIENCE_SECONDS):
        record = await tasks.engine().submit(submission)
        return (await tasks.engine().wait(submission.caller, record.task_id)).record


@pytest.mark.shows("C3")
async def test_terminate_ends_a_running_job_as_cancelled(wire: Wire, page: Page, gate: Path) -> None:
    task = await wire.create("wait_for_file", path=str(gate))
    page.open(f"/task/{job_id(task, 'wait_for_file')}")
    button = page.until("the job runs", "#task-terminate")
    async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as group:
        pushed = group.create_task(follow(wire, task["taskId"]))
        button.click()
    assert pushed.result()[-1]["status"] == "cancelled"
    ended = await wire.get(task["taskId"])
    assert (ended["status"], ended["statusMessage"]) == ("cancelled", "The job was revoked")
    page.until("Flower tells the same", ".badge.text-bg-secondary")
    assert page.details()["Status"] == "REVOKED"


@pytest.mark.shows("C3")
async def test_revoke_ends_a_queued_job_as_cancelled_and_it_never_runs(
    wire: Wire, page: Page, gate: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    running = await wire.create("wait_for_file", path=str(gate))
    queued = await wire.create("leave_a_mark", path=str(mark))
    page.open(f"/task/{job_id(queued, 'leave_a_mark')}")
    page.until("the job waits", "#task-revoke").click()
    await eventually(lambda: not page.find("#task-revoke")[0].is_enabled(), seconds=PATIENCE_SECONDS)
    assert (await follow(wire, queued["taskId"]))[-1]["status"] == "cancelled"  # while the other one still runs
    release(gate)
    assert (await follow(wire, running["taskId"]))[-1]["status"] == "completed"
    assert not mark.exists()


@pytest.mark.shows("C3")
async def test_a_job_in_the_broker_is_listed_and_can_be_revoked_by_command(
    deployment: Deployment, wire: Wire, page: Page, gate: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    await wire.create("wait_for_file", path=str(gate))
    held = [await wire.create("leave_a_mark", path=str(tmp_path / "held")) for _ in range(HELD_JOBS)]
    last = await wire.create("leave_a_mark", path=str(mark))
    page.open(f"/task/{job_id(last, 'leave_a_mark')}")
    page.until("Flower knows the job", "#task-page")
    assert page.details()["Status"] == "PENDING"
    assert page.find("#task-revoke, #task-terminate") == []
    command = [*forked_command("celery"), "-A", "mcp_celery", "control", "revoke", job_id(last, "leave_a_mark")]
    await asyncio.to_thread(subprocess.run, command, env=deployment.env(), cwd=ROOT, check=True)
    assert (await follow(wire, last["taskId"]))[-1]["status"] == "cancelled"  # while all others still wait
    release(gate)
    assert (await follow(wire, held[-1]["taskId"]))[-1]["status"] == "completed"
    assert not mark.exists()


async def test_flower_works_without_our_settings_too(
    deployment: Deployment, driver: webdriver.Chrome, wire: Wire
) -> None:
    with run_flower(deployment) as plain:
        page = Page(driver, plain)
        task = await wire.create("build_report", year=1999, password=PASSWORD)
        page.open(f"/task/{job_id(task, 'build_report')}")
        page.until("the job is SUCCESS", ".text-bg-success")
        assert page.details()["Arguments"] == "()"
        assert PASSWORD not in page.source
