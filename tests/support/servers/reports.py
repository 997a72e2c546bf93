"""The server of docs/operations.md: `server` for anybody, `guarded` for bearers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from mcp.server.auth.settings import AuthSettings
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR
from pydantic import AnyHttpUrl

from mcp_celery import TaskServer
from tests.acceptance.fixture_server import Verifier

NAME: Final = "reports"


def add_tools(server: TaskServer) -> TaskServer:
    """The same tools for both servers, so that one worker serves both."""

    @server.tool(task=True)
    def build_report(gate: str) -> str:
        while not Path(gate).exists():
            time.sleep(0.02)
        return "12 months"

    @server.tool(task=True)
    async def send_report() -> str:
        raise MCPError(INTERNAL_ERROR, "The mail server refused the message")

    return server


server = add_tools(TaskServer(NAME))
guarded = add_tools(
    TaskServer(
        NAME,
        token_verifier=Verifier(),
        auth=AuthSettings(
            issuer_url=AnyHttpUrl("https://one.example"), resource_server_url=None, required_scopes=["use"]
        ),
    )
)
