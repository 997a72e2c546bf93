"""The server of the browser tests: a tool, and a resource, for callers whose tokens name them by URI."""

from __future__ import annotations

import asyncio
from pathlib import Path

from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.mcpserver import Context
from pydantic import AnyHttpUrl

from mcp_celery import TaskConfig, TaskServer

ISSUER = "https://id.example"
ALICE = "https://id.example/alice"
ARCHIVE = "archive://{shelf}/{name}"
TOKEN = "a-token-that-nobody-may-see"


class Verifier:
    """Knows one token."""

    async def verify_token(self, token: str) -> AccessToken | None:
        if token != TOKEN:
            return None
        return AccessToken(token=token, client_id="app", scopes=["use"], subject=ALICE, claims={"iss": ISSUER})


server = TaskServer(
    "reports",
    log_level="WARNING",
    token_verifier=Verifier(),
    auth=AuthSettings(issuer_url=AnyHttpUrl(ISSUER), resource_server_url=None, required_scopes=["use"]),
)


@server.tool(task=TaskConfig(show_arguments=["year"]))
async def build_report(year: int, password: str, ctx: Context) -> str:
    await ctx.report_progress(12, 12, f"{year}-12")
    return f"Report of {year}, made with {password}"


@server.tool(task=True)
async def wait_for_file(path: str) -> str:
    """Ends when the test says so."""
    while not Path(path).exists():  # noqa: ASYNC110, ASYNC240 - a file is what another process can make
        await asyncio.sleep(0.01)
    return "released"


@server.tool(task=True)
async def leave_a_mark(path: str) -> str:
    """Shows that it ran."""
    Path(path).touch()  # noqa: ASYNC240 - one quick call
    return "marked"


@server.resource(ARCHIVE, task=TaskConfig(show_arguments=["shelf", "name"]))
async def archived(shelf: str, name: str) -> str:
    return f"{name} of {shelf}"
