"""Each command of docs/operations.md, typed one after the other beside a deployment, prints what the page shows."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.support.deployment import deployed
from tests.support.programs import ROOT, commands_folder, typed
from tests.support.waiting import eventually
from tests.support.wire import Wire, follow

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

GIVE_UP_SECONDS = 180.0
SERVER: Final = "tests.support.servers.reports"
CONSOLE: Final = re.compile(r"^```console\n\$ (.*)\n((?:.*\n)*?)```", re.MULTILINE)
RUNNING, QUEUED, FAILED = ("0CrkVDX1", "KckwOWbn"), ("gdnr85lo", "22rkXyiI"), "p7Lm2QvX"
"""The beginnings of ids on the page."""
AGES: Final = re.compile(r"(?<=--older-than )\d+[mhd]")
WORKER: Final = "worker@web-1"
VARYING: Final = {
    r"[┏━┳┓┃┡╇┩│└─┴┘]": " ",
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC": "TIME",
    r"\b\d+[dhms]( \d+[dhms])?\b": "SPAN",
    r"(?<=version    )[0-9a-f]{12}": "VERSION",
    r"\b[0-9a-f]{12}(?=  (tool|prompt|resource):)": "VERSION",
    r"(?<=duration_ms=)\d+": "N",
    r"(redis|valkey) [\d.]+": "redis VERSION",
    r"ID[\w-]*": "ID",
    r"finished \d+ jobs?": "finished N jobs",
    r"\s+": " ",
}
"""What differs from one run to the next."""


def documented() -> list[tuple[str, str]]:
    """The commands of the page, in its order, and what it shows of their output."""
    return CONSOLE.findall((ROOT / "docs" / "operations.md").read_text())


def skeleton(text: str, names: Mapping[str, str]) -> list[str]:
    """The lines of a text without what differs from one run to the next."""
    for name, stands_for in names.items():
        text = text.replace(name, stands_for)
    lines: list[str] = []
    for line in text.splitlines():
        for pattern, stands_for in VARYING.items():
            line = re.sub(pattern, stands_for, line)  # noqa: PLW2901
        lines.append(line.strip())
    return [line for line in lines if line]


async def test_each_command_of_the_page_prints_what_it_shows(store_url: str, tmp_path: Path) -> None:
    if shutil.which("jq") is None:
        pytest.skip("jq is missing, which two of the commands need")
    gate = tmp_path / "gate"
    name = f"reports-{os.urandom(3).hex()}"
    with (
        deployed(store_url, name, quiet=True, spec=f"{SERVER}:server") as deployment,
        deployment.worker("threads", len(RUNNING)),
    ):
        url, guarded = deployment.serve(), deployment.serve("guarded")
        (deployment.folder / "web.log").symlink_to("server-2.log")
        (deployment.folder / "worker.log").symlink_to("worker-threads.log")
        env = deployment.env(MCP_CELERY_SERVER=deployment.spec, COLUMNS="200")
        env |= {
            "PATH": f"{commands_folder(tmp_path, mcp_celery='mcp-celery')}{os.pathsep}{env['PATH']}",
            "PYTHONPATH": str(ROOT),
        }

        def printed_by(command: str) -> str:
            return typed(command, env=env, folder=deployment.folder, give_up_seconds=GIVE_UP_SECONDS).stdout

        async with Wire(url) as anonymous, Wire(guarded, token="alice") as alice:
            failed = (await alice.create("send_report"))["taskId"]
            assert (await follow(alice, failed))[-1]["status"] == "failed"
            running = [(await anonymous.create("build_report", gate=str(gate)))["taskId"] for _ in RUNNING]
            await eventually(
                lambda: printed_by("mcp-celery tasks list --status running").count("running") == len(RUNNING)
            )
            queued = [(await alice.create("build_report", gate=str(gate)))["taskId"] for _ in QUEUED]
        ids = dict(zip((*RUNNING, *QUEUED, FAILED), (*running, *queued, failed), strict=True))
        node = re.search(rf"{name}-threads@\S+", printed_by("mcp-celery workers"))
        assert node
        actual = {**{one[:8]: "ID" for one in ids.values()}, node[0]: WORKER, name: "reports"}

        examples = documented()
        assert len(examples) >= 14
        for command, shown in examples:
            here = AGES.sub("0s", command).replace(WORKER, node[0])
            for on_the_page, task_id in ids.items():
                here = here.replace(on_the_page, task_id[:8])
            if "drain" in command:
                gate.touch()
            assert skeleton(printed_by(here), actual) == skeleton(shown, dict.fromkeys(ids, "ID")), command
