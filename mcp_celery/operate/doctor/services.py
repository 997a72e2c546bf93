"""Checks of the broker and the result backend."""

from __future__ import annotations

import secrets
from typing import Final

from mcp_celery.broker.publisher import unusable_broker
from mcp_celery.broker.results import CeleryResults
from mcp_celery.operate.doctor.findings import Findings
from mcp_celery.server.celery_tasks import CeleryTasks

AMQP_TRANSPORTS: Final = ("pyamqp", "amqp", "amqps")


def check_broker(tasks: CeleryTasks) -> Findings:
    """Check the broker of a server's app. Blocks."""
    findings = Findings("broker")
    app, settings = tasks.celery, tasks.settings
    service = tasks.connections.broker_service
    setting = service.partition("(")[2].rstrip(")")
    if app.conf.task_always_eager:
        findings.warning("jobs run in the server, and no worker is asked", "task_always_eager of the Celery app")
        return findings
    lost = unusable_broker(app, service, timeout_seconds=settings.publish_timeout_ms / 1000)
    if lost is not None:
        misses = "cannot be used" if lost.is_misfit else "cannot be reached"
        what = "refuses user or password" if lost.is_refusal else misses
        findings.error(f"the broker {what}: {lost.reason}", setting)
        return findings
    transport: str = app.connection_for_write().transport_cls
    findings.ok(f"the broker ({transport}) answers")
    if transport in AMQP_TRANSPORTS and not app.conf.broker_channel_error_retry:
        findings.error(
            "a worker ends when a job lasts longer than RabbitMQ's consumer_timeout (30 minutes by default)",
            "broker_channel_error_retry = True of the Celery app",
        )
    elif transport in AMQP_TRANSPORTS:
        findings.ok("jobs may last longer than RabbitMQ's consumer_timeout: workers connect again")
    return findings


async def check_results(tasks: CeleryTasks) -> Findings:
    """Check the result backend of a server's app."""
    findings = Findings("results")
    setting = tasks.connections.results_setting
    results = CeleryResults(
        tasks.celery, namespace=tasks.namespace, timeout_seconds=tasks.settings.store_timeout_ms / 1000
    )
    name = f"mcp-celery-doctor-{secrets.token_hex(8)}"
    try:
        answered = name in await results.read_many([name])
    finally:
        results.close()
    kind = type(tasks.celery.backend).__name__
    if not answered:
        findings.error(f"the result backend ({kind}) does not answer, or refuses user or password", setting)
        return findings
    findings.ok(f"the result backend ({kind}) answers")
    granted = tasks.connections.max_ttl_ms()
    if granted < tasks.settings.max_ttl_ms:
        findings.warning(
            f"results expire after {granted // 1000} s, so no task lives longer, although MCP_CELERY_MAX_TTL_MS is "
            f"{tasks.settings.max_ttl_ms}",
            "result_expires of the Celery app",
        )
    return findings
