"""The commands on FastMCP servers: the documentation's, and the example."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("fastmcp", reason="FastMCP is not installed: pip install 'mcp-celery-backend[fastmcp]'")

from tests.support.deployment import ROOT, answering_url, process
from tests.support.wire import Wire, follow

pytestmark = pytest.mark.anyio

COMMAND = [sys.executable, "-m", "mcp_celery"]


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MCP_CELERY_")}
    return {**kept, "PYTHONUNBUFFERED": "1"}


@contextmanager
def dev(server: str, folder: Path, *, imported_from: Path) -> Generator[str]:
    """``mcp-celery dev``, with a store in a folder; gives the server's URL."""
    argv = [*COMMAND, "dev", server, "--port", "0", "--data-dir", str(folder / "store")]
    log = folder / "dev.log"
    with process(argv, environment(), log, folder=imported_from) as running:
        yield answering_url(log, running)


def call(url: str, *arguments: str) -> dict[str, object]:
    """``mcp-celery call``.

    Returns:
        What it prints for machines.
    """
    done = subprocess.run(
        [*COMMAND, "call", url, *arguments, "--json"],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.smoke
async def test_the_documented_fastmcp_server_runs_a_task(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "fastmcp.md").read_text(), re.M | re.S)
    (source,) = [block for block in blocks if "mcp_celery.fastmcp" in block]
    (tmp_path / "reports.py").write_text(source)
    with dev("reports.py", tmp_path, imported_from=tmp_path) as url:
        built = call(url, "build", "--arg", "year=2026")
        assert built["status"] == "completed"
        assert "Report of 2026" in json.dumps(built)
        async with Wire(url) as wire:
            task = (await follow(wire, (await wire.create("train", dataset="words"))["taskId"]))[-1]
            assert task["result"]["structuredContent"] == {"result": "trained on words"}


async def test_the_fastmcp_example_runs_a_task(tmp_path: Path) -> None:
    with dev("workers.fastmcp_server:mcp", tmp_path, imported_from=ROOT) as url:
        async with Wire(url, capabilities={"elicitation": {"form": {}}}) as wire:
            task = (await follow(wire, (await wire.create("digest", text="a", rounds=2))["taskId"]))[-1]
            assert len(task["result"]["structuredContent"]["result"]) == 64
            task_id = (await wire.create("publish", titles=["one", "two"]))["taskId"]
            async with wire.listen([task_id]) as events:
                async for event in events:
                    if requests := event["params"].get("inputRequests"):
                        answer = {"action": "accept", "content": {"value": True}}
                        await wire.update(task_id, dict.fromkeys(requests, answer))
                        break
            task = (await follow(wire, task_id))[-1]
            assert task["result"]["structuredContent"] == {"result": "Published 2 reports"}
            assert task["statusMessage"] == "Publishing two (2/2)"
            task = (await follow(wire, (await wire.create("archive_restore", report="r"))["taskId"]))[-1]
            assert task["result"]["structuredContent"] == {"result": "r is restored"}
