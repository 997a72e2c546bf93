"""A server whose tool Celery beat runs each second, as alice's."""

from __future__ import annotations

from mcp.server.auth.settings import AuthSettings
from pydantic import AnyHttpUrl

from mcp_celery import TaskServer
from tests.acceptance.fixture_server import TOKENS, Verifier

server = TaskServer(
    "scheduled",
    log_level="WARNING",
    token_verifier=Verifier(),
    auth=AuthSettings(issuer_url=AnyHttpUrl("https://one.example"), resource_server_url=None, required_scopes=["use"]),
)


@server.tool(task=True)
async def build_report(year: int) -> str:
    return f"the report of {year}"


client, subject, issuer = TOKENS["alice"]
server.schedule("build_report", {"year": 2026}, 1, owner=f"{client}|{subject}", issuer=issuer, name="yearly")
