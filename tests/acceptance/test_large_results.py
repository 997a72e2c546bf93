"""Results of megabytes arrive over every transport and in both revisions, pushed or asked for, and small ones too."""

from __future__ import annotations

import subprocess
from typing import Any, Final

import pytest
from mcp.client import Client

from mcp_celery.client import TaskError, TasksClient, call_tool_task, resilient_http
from tests.acceptance.test_transports import in_memory
from tests.support.deployment import Deployment
from tests.support.nodes import Pool
from tests.support.programs import forked_command
from tests.support.scripted import text_of

pytestmark = pytest.mark.anyio

REVISIONS: Final = ("2026-07-28", "2025-11-25")
WAIT_SECONDS: Final = 120
TEXTS: Final = {"600 kB": ("x", 600_000), "2 MB": ("ж", 1_000_000), "20 MB": ("x", 20_000_000)}
"""Characters of two bytes take six on the wire, which none of these must be too large for."""


@pytest.fixture(scope="session", params=["asyncio"])
def pool(request: pytest.FixtureRequest) -> Pool:
    """What the client sees is the same on every pool."""
    return request.param


@pytest.fixture
def transport(request: pytest.FixtureRequest, deployment: Deployment, url: str) -> Any:
    """What a client of the shared deployment is made of; ``sdk`` is the SDK's own HTTP, which takes events of 1 MiB."""
    if request.param == "http":
        return resilient_http(url)
    if request.param == "sdk":
        return url
    if request.param == "memory":
        return in_memory(deployment)
    return deployment.stdio()


def client_of(transport: Any, revision: str) -> Client:
    mode = "legacy" if revision == "2025-11-25" else "auto"
    return Client(transport, mode=mode, extensions=[TasksClient()])


async def arrives(client: Client, size: str) -> bool:
    text, times = TEXTS[size]
    handle = await call_tool_task(client, "repeated", {"text": text, "times": times})
    assert handle.task_id
    return text_of(await handle.result(WAIT_SECONDS)) == text * times


@pytest.mark.parametrize(
    ("transport", "revision"),
    [
        *(("http", revision) for revision in REVISIONS),
        ("sdk", "2026-07-28"),
        *(pytest.param("stdio", revision, marks=pytest.mark.slow) for revision in REVISIONS),
        *(("memory", revision) for revision in REVISIONS),
    ],
    indirect=["transport"],
)
async def test_large_results_arrive_and_a_small_one_beside_them(transport: Any, revision: str) -> None:
    async with client_of(transport, revision) as client:
        small = await call_tool_task(client, "slow_compute", {"seconds": 1, "label": "small"})
        assert [await arrives(client, size) for size in ("600 kB", "2 MB")] == [True, True]
        assert text_of(await small.result(WAIT_SECONDS)) == "done small"


@pytest.mark.parametrize("revision", REVISIONS)
async def test_results_of_the_largest_allowed_size_arrive(url: str, revision: str) -> None:
    async with client_of(resilient_http(url), revision) as client:
        assert await arrives(client, "20 MB")


@pytest.mark.parametrize("transport", ["sdk"], indirect=True)
async def test_a_result_that_is_too_large_for_the_transport_is_an_error_at_once(transport: Any) -> None:
    """Every answer of this revision is an event."""
    async with client_of(transport, "2025-11-25") as client:
        with pytest.raises(TaskError, match=r"larger than the client's transport takes: .* the 1048576 byte limit"):
            await arrives(client, "2 MB")
        assert await arrives(client, "600 kB")


@pytest.mark.long
@pytest.mark.parametrize("transport", ["stdio", "memory"], indirect=True)
@pytest.mark.parametrize("revision", REVISIONS)
async def test_results_of_the_largest_allowed_size_arrive_without_http(transport: Any, revision: str) -> None:
    async with client_of(transport, revision) as client:
        assert await arrives(client, "20 MB")


def test_the_command_line_prints_a_large_result(url: str) -> None:
    text, times = TEXTS["2 MB"]
    argv = [*forked_command("mcp_celery"), "call", url, "repeated", "--arg", f"text={text}", "--arg", f"times={times}"]
    called = subprocess.run(argv, capture_output=True, text=True, timeout=WAIT_SECONDS, check=True)
    assert called.stdout.strip() == text * times
