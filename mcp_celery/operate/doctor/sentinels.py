"""Checks of the Sentinels that watch the Redis of the tasks."""

from __future__ import annotations

from typing import Final

from mcp_celery.operate.doctor.findings import Finding, Findings
from mcp_celery.store import RedisBackend

URL: Final = "MCP_CELERY_REDIS_URL"
SENTINELS: Final = "the configuration of the Sentinels (docs/redis.md)"
ENOUGH: Final = 3
"""How many Sentinels it takes so that one may be lost, and the others are a majority."""


async def check_sentinels(backend: RedisBackend) -> list[Finding]:
    """Ask each Sentinel of ``MCP_CELERY_REDIS_URL`` whether a failover is possible; no finding where it names none.

    Args:
        backend: The store.
    """
    findings = Findings("sentinels")
    views = await backend.sentinels()
    answered = [view for view in views if view.problem is None]
    for view in views:
        if view.problem is not None:
            findings.warning(f"the Sentinel {view.sentinel} cannot be asked: {view.problem}", URL)
    if not answered:
        return findings.found
    masters = sorted({view.master for view in answered})
    if len(masters) > 1:
        findings.warning(
            f"the Sentinels name different masters ({', '.join(masters)}): a failover is under way, or some Sentinels "
            "are cut off from the others",
            SENTINELS,
        )
    if (known := min(view.sentinels for view in answered)) < ENOUGH:
        findings.warning(f"there are only {known} Sentinels: it takes {ENOUGH} so that one may be lost", SENTINELS)
    no_failover = next((view.no_failover for view in answered if view.no_failover is not None), None)
    replicas = min(view.replicas for view in answered)
    if no_failover is not None:
        findings.error(f"the Sentinels cannot agree on a failover now: {no_failover}", SENTINELS)
    if not replicas:
        findings.error("the master has no live replica that could take its place", SENTINELS)
    if no_failover is None and replicas:
        findings.ok(
            f"{len(answered)} of {len(views)} Sentinels answer, and can agree on a failover of {masters[0]}; live "
            f"replicas: {replicas}"
        )
    return findings.found
