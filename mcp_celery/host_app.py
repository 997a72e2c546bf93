"""Somebody's own Celery app: its workers run a server's jobs and consume its queue, and keep their own settings.

Only a worker imports the server, when it starts: the server's module imports the app's, and ``flower``, ``beat``,
``inspect`` and the host's web processes need no server.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import click
from celery import Celery, bootsteps, signals
from celery.utils.text import str_to_list

from mcp_celery.composition import CeleryTasks
from mcp_celery.errors import ConfigurationError
from mcp_celery.queues import queue_of
from mcp_celery.server import load_tasks
from mcp_celery.worker import add_steps, require_json


@dataclass
class _Host:
    """What is installed in an app, and what the command line of its worker said of queues."""

    servers: list[str] = field(default_factory=list[str])
    named: frozenset[str] = frozenset()
    excluded: frozenset[str] = frozenset()


_hosts: WeakKeyDictionary[Celery, _Host] = WeakKeyDictionary()


def install(app: Celery, server: str) -> None:
    """Have the workers of a Celery app run the jobs of a server.

    ```python
    app = Celery("proj")
    mcp_celery.install(app, "proj.mcp:server")
    ```

    Call it where the app is made, once for each server. The server's module is imported when a worker starts, and by
    nobody else. A worker then consumes the server's queue too, unless ``-Q`` names others or ``-X`` excludes it. The
    app's configuration is not changed.

    Args:
        app: Your Celery app.
        server: The server, as ``module:attribute``; it is made with ``celery=app``.
    """
    host = _hosts.setdefault(app, _Host())
    if server not in host.servers:
        host.servers.append(server)
    signals.celeryd_init.connect(_note_queues, weak=False, dispatch_uid="mcp_celery.note_queues")
    app.steps["worker"].add(HostedServers)
    add_steps(app)


def _note_queues(instance: Any = None, options: Any = None, **_: Any) -> None:
    """Note what the command line says of queues, which is not found in the app later.

    Celery refuses queues of ``-Q`` that are not declared, under ``task_create_missing_queues=False``, before any step
    of the worker: so a server's queue is declared now. Without need nothing is: the host may yet set its queues.
    """
    app: Celery = instance.app
    host = _hosts.get(app)
    if host is None:
        return
    host.named = frozenset(str_to_list(options.get("queues")) or ())
    host.excluded = frozenset(str_to_list(options.get("exclude_queues")) or ())
    if host.named and not app.conf.task_create_missing_queues:
        try:
            names = {tasks.queue_name for tasks in _servers(app, host)}
        except ConfigurationError as error:
            raise SystemExit(f"Error: {error}") from None  # of any other exception Celery would log the traceback only
        for name in names & host.named:
            queues: Any = app.amqp.queues
            queues.add(queue_of(app, name))


class HostedServers(bootsteps.Step):
    """Gives a worker the jobs and the queues of the servers that are installed in its app."""

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        app: Celery = parent.app
        host = _hosts[app]
        require_json(app)
        try:
            for tasks in _servers(app, host):
                tasks.register_jobs(app)
                if not host.named and tasks.queue_name not in host.excluded:
                    queues: Any = app.amqp.queues
                    queues.select_add(queue_of(app, tasks.queue_name))
        except ConfigurationError as error:
            raise click.ClickException(str(error)) from error


def _servers(app: Celery, host: _Host) -> list[CeleryTasks]:
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
