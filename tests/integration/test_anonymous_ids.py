"""The id of an anonymous task is the right to read it: where it is shown, and where it is not."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcp_celery.embedded import EmbeddedStore
from mcp_celery.keys import Hidden, build_task_key, celery_job_id
from tests.support.deployment import ROOT, Deployment, deployed
from tests.support.flower import run_flower
from tests.support.nodes import short_folder
from tests.support.programs import forked_command
from tests.support.waiting import eventually
from tests.support.wire import Wire, follow

pytestmark = pytest.mark.anyio

SPEC = "tests.support.servers.loud:server"
LOG = "worker-asyncio.log"


@pytest.fixture(scope="module", params=[False, True], ids=["shown to Celery", "hidden"])
def hidden(request: pytest.FixtureRequest) -> bool:
    """Whether Celery's ids hide those of anonymous tasks."""
    return request.param


@pytest.fixture(scope="module")
def store_url() -> Iterator[str]:
    with short_folder() as folder, EmbeddedStore.open(folder / "store") as store:
        yield store.url


@pytest.fixture(scope="module")
def deployment(store_url: str, hidden: bool) -> Iterator[Deployment]:
    settings = {"MCP_CELERY_HIDE_ANONYMOUS_IDS": "true"} if hidden else {}
    name = f"anonymous-{hidden}-{os.getpid()}".lower()
    # Celery's own debugging lines name the arguments of every job, among them the key.
    with deployed(store_url, name, spec=SPEC, settings=settings) as found, found.worker("asyncio", level="DEBUG"):
        yield found


def control(deployment: Deployment, *arguments: str) -> str:
    """What Celery's command says."""
    argv = [*forked_command("celery"), "-A", "mcp_celery", *arguments]
    done = subprocess.run(argv, cwd=ROOT, env=deployment.env(), capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


async def asks(wire: Wire, task_id: str) -> bool:
    task = await wire.get(task_id)
    assert task["status"] in ("working", "input_required"), task
    return task["status"] == "input_required"


@pytest.mark.smoke
async def test_logs_distinguish_anonymous_tasks_without_their_ids(deployment: Deployment, hidden: bool) -> None:
    async with Wire(deployment.serve(), capabilities={"elicitation": {}}) as wire:
        task_id = str((await wire.create("ask"))["taskId"])
        await eventually(lambda: asks(wire, task_id), what="the task asks")
        answer = {"action": "accept", "content": {"name": "Ada"}}
        await wire.update(task_id, dict.fromkeys((await wire.get(task_id))["inputRequests"], answer))
        assert (await follow(wire, task_id))[-1]["result"]["content"][0]["text"] == "Hello, Ada!"
        nobodys = "n" * 43
        await wire.ask("tasks/get", {"taskId": nobodys})
    shown, key = f"{task_id[:8]}…", build_task_key(None, task_id, "tool", "ask")
    jobs = [celery_job_id(key, leg, hidden=Hidden.TASK_ID) if hidden else f"anon:{shown}:tool:ask" for leg in (1, 2)]
    server_log = f"server-{deployment.servers}.log"
    for log, text in (
        (server_log, f"event=task.created scope=null task={shown} "),
        (server_log, f"published the next job of a task: scope=None task={shown} job={jobs[1]}"),
        (server_log, f"event=task.refused scope=null task={nobodys[:8]}… reason=unknown"),
        (LOG, f"[{jobs[0]}"),
        (LOG, f"job {jobs[0]} ended with questions; the answers begin {jobs[1]}"),
        (LOG, f"[{jobs[1]}"),
        (LOG, f"event=task.ended scope=null task={shown} status=completed"),
    ):
        await eventually(lambda log=log, text=text: text in deployment.logs()[log], what=f"{text!r} in {log}")
    assert [name for name, text in deployment.logs().items() if task_id in text or nobodys in text] == []


async def test_an_operator_sees_the_right_to_read_only_where_it_is_not_hidden(
    deployment: Deployment, hidden: bool, tmp_path: Path
) -> None:
    """And reaches a job by the id that there is to see."""
    with run_flower(deployment, "--conf=config/flowerconfig.py") as flower:
        async with Wire(deployment.serve()) as wire:
            task_id = str((await wire.create("hold", path=str(tmp_path / "never")))["taskId"])
            job_id = celery_job_id(
                build_task_key(None, task_id, "tool", "hold"), hidden=Hidden.TASK_ID if hidden else Hidden.NOTHING
            )
            await eventually(lambda: job_id in flower.get("/api/tasks"), what="Flower lists the job")
            shown = [flower.get("/api/tasks"), flower.get(f"/task/{job_id}"), control(deployment, "inspect", "active")]
            assert all(job_id in one for one in shown)
            assert [task_id in one for one in shown] == [not hidden] * 3
            control(deployment, "control", "terminate", "TERM", job_id)
            last = (await follow(wire, task_id))[-1]
            assert (last["status"], last["statusMessage"]) == ("cancelled", "The job was revoked")
