"""Somebody's own Celery app: its workers run a server's jobs and consume its queue, and keep their own settings.

Only a worker imports the server, when it starts: the server's module imports the app's, and ``flower``, ``beat``,
``inspect`` and the host's web processes need no server. They call :func:`install` all the same, where the app is made;
so what only workers need is named here and imported by them, as Celery does with its own steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final
from weakref import WeakKeyDictionary

from celery import Celery, signals
from kombu.utils.imports import symbol_by_name

from mcp_celery.steps import add_steps

_WORKER: Final = "mcp_celery.host_worker"


@dataclass
class Host:
    """What is installed in an app, and what the command line of its worker said of queues."""

    servers: list[str] = field(default_factory=list[str])
    named: frozenset[str] = frozenset()
    excluded: frozenset[str] = frozenset()


hosts: Final[WeakKeyDictionary[Celery, Host]] = WeakKeyDictionary()
"""The apps in which servers are installed."""


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
    host = hosts.setdefault(app, Host())
    if server not in host.servers:
        host.servers.append(server)
    signals.celeryd_init.connect(_note_queues, weak=False, dispatch_uid="mcp_celery.note_queues")
    app.steps["worker"].add(f"{_WORKER}:HostedServers")
    add_steps(app)


def _note_queues(instance: Any = None, options: Any = None, **_: Any) -> None:
    if (host := hosts.get(instance.app)) is not None:
        symbol_by_name(f"{_WORKER}:note_queues")(instance.app, host, options)
