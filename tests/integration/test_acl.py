"""Redis users that may do no more than they need: the records' user of docs/security.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from mcp_celery import Settings
from tests.integration.conftest import TOOLS, Starter
from tests.support.live import live_server
from tests.support.servers import tools

pytestmark = pytest.mark.anyio

PAGE: Final = Path(__file__).parents[2] / "docs" / "security.md"


def rules() -> list[str]:
    """What the page says of the records' user."""
    found = re.search(r"^user mcp-celery (.*)$", PAGE.read_text(), re.MULTILINE)
    assert found is not None
    return found.group(1).split()


@pytest.mark.smoke
async def test_the_user_of_the_records_needs_no_more_than_the_page_says(own: Starter) -> None:
    store = own.valkey("store")
    with redis.Redis.from_url(store.url) as client:
        admin: Any = client
        admin.execute_command("ACL", "SETUSER", "mcp-celery", *rules())
        allowed = store.url.replace("unix://", "unix://mcp-celery:PASSWORD@")
        settings = Settings.load(
            redis_url=allowed, broker_url=store.url, result_backend=store.url, namespace="acl", heartbeat_ms=500
        )
        async with live_server(tools.build, settings) as live:
            own.worker(TOOLS, "asyncio", settings)
            done = await live.submit("add", {"a": 1, "b": 2})
            assert (await live.end_of(done)).record.status == "completed"
        assert admin.execute_command("ACL", "LOG") == []
        with redis.Redis.from_url(allowed) as limited, pytest.raises(redis.ResponseError):
            limited.get("somebody-elses")
