"""All checks, in the order in which one explains the next."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping
from typing import Final

from celery import Celery

from mcp_celery.broker.results import CeleryResults
from mcp_celery.common.installed import OTHER_PACKAGE, package_conflicts
from mcp_celery.errors import ConfigurationError, StoreUnavailableError
from mcp_celery.operate.doctor.cluster import check_cluster
from mcp_celery.operate.doctor.findings import Finding, Findings
from mcp_celery.operate.doctor.sentinels import check_sentinels
from mcp_celery.operate.doctor.services import check_broker, check_results
from mcp_celery.operate.doctor.store import check_store
from mcp_celery.operate.doctor.workers import check_workers
from mcp_celery.operate.site import Open, Site, UnreachableStoreError, find_site
from mcp_celery.server.celery_tasks import CeleryTasks
from mcp_celery.settings import Settings, unknown_variables

_SETTING: Final = re.compile(r"MCP_CELERY_[A-Z_]+|result_backend|broker_url|accept_content|task_serializer")


async def examine(
    app: Celery | str | None, server: str | None, namespace: str | None, environ: Mapping[str, str]
) -> AsyncGenerator[Finding]:
    """Check a deployment as this process sees it, and give each finding as soon as it is known.

    Args:
        app: The Celery app, as for :func:`find_site`.
        server: The server, likewise.
        namespace: The namespace, likewise.
        environ: The environment's variables.
    """
    settings = Findings("settings")
    _check_process(environ, settings)
    site = await _found(app, server, namespace, settings)
    for finding in settings.found:
        yield finding
    if site is None:
        return
    if site.settings.is_in_memory:
        yield Finding("store", "ok", "tasks are kept in their server's process (memory://), which needs no worker")
        return
    async for finding in _of_store(site):
        yield finding


async def _of_store(site: Site) -> AsyncGenerator[Finding]:
    for finding in await check_sentinels(site.backend):
        yield finding
    try:
        async with site.opened() as servers:
            for finding in await check_cluster(site.backend, [opened.namespace for opened in servers]):
                yield finding
            for opened in servers:
                async for finding in _of_server(site.servers.get(opened.namespace), opened):
                    yield finding
            if not servers:
                yield Finding("store", "warning", "no server has used this store yet", "MCP_CELERY_REDIS_URL")
    except UnreachableStoreError as error:
        yield Finding("store", "error", str(error), "MCP_CELERY_REDIS_URL")
    except ConfigurationError as error:
        yield Finding("settings", "error", str(error), _setting_in(str(error)))


def _check_process(environ: Mapping[str, str], findings: Findings) -> None:
    """Look for variables that are no settings, and for another package with the same import name."""
    for unknown in unknown_variables(environ):
        findings.warning(unknown, unknown.partition(" ")[0])
    for conflict in package_conflicts():
        findings.warning(conflict, OTHER_PACKAGE)


async def _found(
    app: Celery | str | None, server: str | None, namespace: str | None, findings: Findings
) -> Site | None:
    """Read the settings, and import the servers. None: that fails."""
    try:
        Settings.load()
        site = await asyncio.to_thread(find_site, app, server, namespace)
        for tasks in site.servers.values():
            await asyncio.to_thread(tasks.check)
    except ConfigurationError as error:
        findings.error(str(error), _setting_in(str(error)))
        return None
    if site.servers:
        findings.ok(f"the settings are valid, and so is {'each server' if len(site.servers) > 1 else 'the server'}")
    else:
        findings.warning(
            "no server is named, so broker, results and workers were not checked",
            "MCP_CELERY_SERVER, or `doctor MODULE:ATTR`",
        )
    return site


async def _of_server(tasks: CeleryTasks | None, opened: Open) -> AsyncGenerator[Finding]:
    key = None if tasks is None else _result_key(tasks)
    store = await check_store(opened, result_key=key)
    for finding in store:
        yield finding
    if tasks is None:
        return
    broker = await asyncio.to_thread(check_broker, tasks)
    for finding in broker.found:
        yield finding
    if tasks.connections.publishes:
        for finding in (await check_results(tasks)).found:
            yield finding
    answers = not any(one.level == "error" and one.setting == "MCP_CELERY_REDIS_URL" for one in store)
    if not answers or not tasks.connections.publishes or any(one.level == "error" for one in broker.found):
        yield Finding("workers", "warning", "not checked: store or broker cannot be used", None)
        return
    try:
        for finding in (await check_workers(tasks, opened)).found:
            yield finding
    except StoreUnavailableError:
        yield Finding("workers", "warning", "not checked: the store does not answer any more", "MCP_CELERY_REDIS_URL")


def _result_key(tasks: CeleryTasks) -> str | None:
    """A name of a result that is kept in the Redis of the records; None where results are kept elsewhere."""
    if tasks.connections.result_place() != "with records":
        return None
    results = CeleryResults(
        tasks.celery, namespace=tasks.namespace, timeout_seconds=tasks.settings.store_timeout_ms / 1000
    )
    try:
        return results.key("mcp-celery-doctor")
    finally:
        results.close()


def _setting_in(text: str) -> str | None:
    """The setting that an error names first."""
    found = _SETTING.search(text)
    return None if found is None else found[0]
