"""The part of a user's Celery worker that serves the servers installed in its app."""

from __future__ import annotations

from typing import Any

import click
from celery import Celery, bootsteps
from celery.utils.text import str_to_list

from mcp_celery.errors import ConfigurationError
from mcp_celery.host_app import Host, hosts
from mcp_celery.server.celery_tasks import CeleryTasks
from mcp_celery.server.loading import load_tasks
from mcp_celery.worker import pool_problem, require_fit_broker, require_readable


def note_queues(app: Celery, host: Host, options: Any) -> None:
    """Keep the queues that the command line names, because the app does not hold them later.

    Celery refuses queues of ``-Q`` that are not declared, under ``task_create_missing_queues=False``, before any step
    of the worker: so a server's queue is declared now. Without need nothing is: the host may yet set its queues.
    """
    host.named = frozenset(str_to_list(options.get("queues")) or ())
    host.excluded = frozenset(str_to_list(options.get("exclude_queues")) or ())
    if host.named and not app.conf.task_create_missing_queues:
        try:
            declared = {tasks.queue_name: tasks.declared_queue() for tasks in _servers(app, host)}
        except ConfigurationError as error:
            raise SystemExit(f"Error: {error}") from None  # of any other exception Celery would log the traceback only
        for name in declared.keys() & host.named:
            queues: Any = app.amqp.queues
            queues.add(declared[name])


class HostedServers(bootsteps.Step):
    """Gives a worker the jobs and the queues of the servers that are installed in its app."""

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        app: Celery = parent.app
        host = hosts[app]
        require_readable(app)
        require_fit_broker(app)
        queues: Any = app.amqp.queues
        problem = pool_problem(parent)
        try:
            for tasks in _servers(app, host):
                if not host.named and tasks.queue_name not in host.excluded:
                    queues.select_add(tasks.declared_queue())
                if problem is None:
                    tasks.register_jobs(app)
                elif ours := [name for name in tasks.queue_names if name in queues.consume_from]:
                    raise click.ClickException(f"{problem}; or leave these queues out: -X {','.join(ours)}")
        except ConfigurationError as error:
            raise click.ClickException(str(error)) from error


def _servers(app: Celery, host: Host) -> list[CeleryTasks]:
    """Import the servers of an app.

    Raises:
        ConfigurationError: One of them cannot be imported, is made for another app, or shares its namespace.
    """
    found: dict[str, CeleryTasks] = {}
    for spec in host.servers:
        tasks = load_tasks(spec)
        if tasks.celery is not app:
            raise ConfigurationError(
                f"{spec} does not use the Celery app {app.main!r} in which it is installed: make it with celery=app"
            )
        if found.setdefault(tasks.namespace, tasks) is not tasks:
            raise ConfigurationError(
                f"{spec} has the namespace {tasks.namespace!r} of another server that is installed in this Celery app: "
                "give one of them another name (MCP_CELERY_NAMESPACE, where set, is every server's)"
            )
    return list(found.values())
