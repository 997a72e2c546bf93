"""Result backends that cannot hold tasks: refused at start, in one line, whoever has configured them."""

from __future__ import annotations

from typing import Final

import pytest

from tests.support.command_line import refused
from tests.support.nodes import EmbeddedStoreContainer

HOSTS: Final = "tests.support.servers.keeps_no_results"
TOOLS: Final = "tests.support.servers.anywhere:server"
SERVE: Final = ("mcp_celery", "serve", "--port=0")
WORK: Final = ("celery", "-A", "mcp_celery", "worker", "--pool=threads", "--without-mingle")


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("command", "server", "setting", "reason"),
    [
        (SERVE, f"{HOSTS}:rpc", None, "RPCBackend"),
        (SERVE, f"{HOSTS}:disabled", None, "DisabledBackend"),
        (SERVE, TOOLS, "rpc://", "MCP_CELERY_RESULT_BACKEND: this result backend cannot hold tasks"),
        (WORK, TOOLS, "rpc://", "MCP_CELERY_RESULT_BACKEND: this result backend cannot hold tasks"),
        (WORK, TOOLS, "disabled://", "it keeps no results"),
        (SERVE, TOOLS, "db+nodb://", "result_backend cannot be used: NoSuchModuleError"),
        (WORK, TOOLS, "nowhere://", "result_backend cannot be used: No module named 'nowhere'"),
    ],
    ids=[
        "host-rpc",
        "host-disabled",
        "server-rpc",
        "worker-rpc",
        "worker-disabled",
        "server-no-driver",
        "worker-unknown",
    ],
)
def test_a_result_backend_that_cannot_hold_tasks_is_refused_at_start(
    store: EmbeddedStoreContainer, command: tuple[str, ...], server: str, setting: str | None, reason: str
) -> None:
    settings = {"MCP_CELERY_REDIS_URL": store.url, "MCP_CELERY_SERVER": server}
    if setting:
        settings["MCP_CELERY_RESULT_BACKEND"] = setting
    arguments = [server] if command is SERVE else []
    ended = refused(*command, *arguments, **settings)
    said = ended.stdout + ended.stderr
    assert [line for line in said.splitlines() if reason in line], said
