"""The app that ``celery -A mcp_celery worker`` finds; ``flower``, ``inspect`` and ``control`` find it too.

A worker imports the server that ``MCP_CELERY_SERVER`` names when it imports its other modules, and consumes the
server's queue. Only a worker needs a server: the other commands do without.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import click
from celery import bootsteps, signals
from celery.concurrency import get_implementation
from celery.fixups.django import fixup as fixup_django

from mcp_celery.composition import CeleryTasks
from mcp_celery.default_app import default_app as app
from mcp_celery.errors import ConfigurationError
from mcp_celery.logs import contain
from mcp_celery.server import load_tasks
from mcp_celery.settings import Settings
from mcp_celery.worker import require_json
from mcp_celery.worker.elastic import GROW_TO_SETTING
from mcp_celery.worker.pool import TaskPool

__all__ = ["app"]

ASYNCIO_CONCURRENCY: Final = 100
"""Jobs that an asyncio pool runs at a time when nobody says. A job that waits costs some kilobytes."""
ASYNCIO_GROW_TO: Final = 1000
"""And at most, while its event loop has time for more."""


NEEDS_NO_WORKER: Final = (
    "MCP_CELERY_REDIS_URL=memory:// keeps tasks in their server's process, which runs their jobs itself: start no "
    "worker, or set MCP_CELERY_REDIS_URL to a Redis"
)


def _import_server(sender: Any = None, **_: Any) -> Exception | None:
    """Register the server's jobs, and make its queue the one that is consumed when ``-Q`` names none.

    Returns:
        What is wrong, to be shown in one line. Celery raises what a handler returns; of what one raises, it logs the
        traceback first.
    """
    if sender is not app:
        return None
    try:
        settings = Settings.load()
        if settings.is_in_memory:
            return click.ClickException(NEEDS_NO_WORKER)
        if settings.server is None:
            return None
        tasks = load_tasks(settings.server)
        _require_this_app(tasks, settings.server)
        app.conf.task_default_queue = tasks.queue_name
        tasks.register_jobs(app)
    except ConfigurationError as error:
        return click.ClickException(str(error))
    return None


def _require_this_app(tasks: CeleryTasks, spec: str) -> None:
    if tasks.celery is not app:
        raise ConfigurationError(
            f"{spec} uses a Celery app of its own; run that app's worker instead of `-A mcp_celery`"
        )


class RequireServer(bootsteps.Step):
    """Refuses to start a worker that could not run a single job, and says why in one line."""

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        if not any(str(name).startswith("mcp.") for name in app.tasks):
            raise click.ClickException(
                "this worker has no component to run: set MCP_CELERY_SERVER=module:attribute to a "
                "mcp_celery.TaskServer with a tool declared task=True"
            )
        require_json(app)


def _refuse_settings() -> None:
    """End in one line where Celery, which reads the settings deep inside its commands, would show a traceback."""
    try:
        Settings.load()
    except ConfigurationError as error:
        raise SystemExit(f"Error: {error}") from None


_refuse_settings()


def _size_asyncio_pool(instance: Any = None, conf: Any = None, options: Any = None, **_: Any) -> None:
    """Give the asyncio pool its own default; Celery's, the number of processors, is that of the other pools.

    ``-c`` is a promise: the pool does not grow beyond it, whatever the configuration says.
    """
    pool: Any = get_implementation(options.get("pool") or options.get("pool_cls") or conf.worker_pool)
    if instance.app is not app or not issubclass(pool, TaskPool):
        return
    if options.get("concurrency"):
        conf[GROW_TO_SETTING] = 0
    elif not conf.worker_concurrency:
        conf.worker_concurrency = ASYNCIO_CONCURRENCY
        conf.setdefault(GROW_TO_SETTING, ASYNCIO_GROW_TO)


def _contain_logs(logger: logging.Logger, **_: Any) -> None:
    """Escape what must not reach a terminal, in the lines of the handlers that Celery has made."""
    contain(logger)


django_fixup = fixup_django(app)
"""What Celery does for Django in the apps that it makes, kept alive here; None where ``DJANGO_SETTINGS_MODULE`` is not
set. It may make this app the default one, so it is not done where the app is only imported.
"""
signals.after_setup_logger.connect(_contain_logs, weak=False, dispatch_uid="mcp_celery.contain_logs")
signals.after_setup_task_logger.connect(_contain_logs, weak=False, dispatch_uid="mcp_celery.contain_task_logs")
signals.celeryd_init.connect(_size_asyncio_pool, weak=False, dispatch_uid="mcp_celery.size_asyncio_pool")
signals.import_modules.connect(_import_server, weak=False, dispatch_uid="mcp_celery.import_server")
app.steps["worker"].add(RequireServer)
