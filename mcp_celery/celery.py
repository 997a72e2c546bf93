"""The app that ``celery -A mcp_celery worker`` finds; ``flower``, ``inspect`` and ``control`` find it too.

A worker imports the server that ``MCP_CELERY_SERVER`` names when it imports its other modules, and consumes the
server's queue. Only a worker needs a server: the other commands do without.
"""

from __future__ import annotations

import logging
import os
from typing import Any, Final

import click
from celery import bootsteps, signals
from celery.concurrency import get_implementation
from celery.fixups.django import fixup as fixup_django

from mcp_celery.asyncio_pool.elastic import GROW_TO_SETTING
from mcp_celery.asyncio_pool.pool import TaskPool
from mcp_celery.common.garbage import set_up_collector
from mcp_celery.common.installed import package_conflicts
from mcp_celery.default_app import default_app as app
from mcp_celery.errors import ConfigurationError
from mcp_celery.json_logs import format_handlers
from mcp_celery.server.celery_tasks import CeleryTasks
from mcp_celery.server.loading import load_tasks
from mcp_celery.settings import Settings, unknown_variables
from mcp_celery.worker import pool_problem, require_fit_broker, require_readable

__all__ = ["app"]

ASYNCIO_CONCURRENCY: Final = 100
"""Jobs that an asyncio pool runs at a time by default. A job that waits costs some kilobytes."""
ASYNCIO_GROW_TO: Final = 1000
"""And at most, while its event loop has time for more."""


logger = logging.getLogger(__name__)

NEEDS_NO_WORKER: Final = (
    "MCP_CELERY_REDIS_URL=memory:// keeps tasks in their server's process, which runs their jobs itself: start no "
    "worker, or set MCP_CELERY_REDIS_URL to a Redis"
)

_importing: Final[set[str]] = set()
"""The server that is being imported."""


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
        if settings.server in _importing:
            return None  # it exposes a job, and so has Celery import all modules while it is imported itself
        _importing.add(settings.server)
        try:
            tasks = load_tasks(settings.server)
        finally:
            _importing.discard(settings.server)
        _require_this_app(tasks, settings.server)
        app.conf.task_default_queue = tasks.queue_name
        queues: Any = app.amqp.queues
        queues.select_add(tasks.declared_queue())  # `-Q`, which Celery applies later, leaves it out
        tasks.register_jobs(app)
        if entries := tasks.beat_entries():
            app.conf.beat_schedule = {**entries, **app.conf.beat_schedule}
        for warning in (*unknown_variables(os.environ), *package_conflicts()):
            logger.warning("%s", warning)
    except ConfigurationError as error:
        return click.ClickException(str(error))
    return None


def _require_this_app(tasks: CeleryTasks, spec: str) -> None:
    if tasks.celery is not app:
        raise ConfigurationError(
            f"{spec} uses a Celery app of its own; run that app's worker instead of `-A mcp_celery`"
        )


def _nothing_to_run() -> str:
    """The reason why this worker cannot get a job."""
    server = Settings.load().server
    if server is None:
        return (
            "this worker has no component to run: set MCP_CELERY_SERVER=module:attribute to a mcp_celery.TaskServer "
            "with a tool declared task=True"
        )
    return f"this worker has no component to run: nothing in {server} runs as a task; declare a tool with task=True"


class RequireServer(bootsteps.Step):
    """Refuses to start a worker that could not run a single job, and says why in one line."""

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        if not any(str(name).startswith("mcp.") for name in app.tasks):
            raise click.ClickException(_nothing_to_run())
        require_readable(app)
        require_fit_broker(app)
        if problem := pool_problem(parent):
            raise click.ClickException(problem)


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


def _tune_collector(instance: Any = None, **_: Any) -> None:
    """Tune the garbage collector of this app's workers, and of prefork's children, when they begin to work."""
    if instance.app is not app:
        return
    for begins in (signals.worker_ready, signals.worker_process_init):
        begins.connect(_begin_tuned, weak=False, dispatch_uid="mcp_celery.begin_tuned")


def _begin_tuned(**_: Any) -> None:
    set_up_collector(Settings.load().gc)


def _contain_logs(logger: logging.Logger, **_: Any) -> None:
    """Format the lines of the handlers that Celery has made: as JSON, or without what must not reach a terminal."""
    format_handlers(logger)


django_fixup = fixup_django(app)
"""What Celery does for Django in the apps that it makes, kept alive here; None where ``DJANGO_SETTINGS_MODULE`` is not
set. It may make this app the default one, so it is not done where the app is only imported.
"""
signals.after_setup_logger.connect(_contain_logs, weak=False, dispatch_uid="mcp_celery.contain_logs")
signals.after_setup_task_logger.connect(_contain_logs, weak=False, dispatch_uid="mcp_celery.contain_task_logs")
signals.celeryd_init.connect(_size_asyncio_pool, weak=False, dispatch_uid="mcp_celery.size_asyncio_pool")
signals.celeryd_init.connect(_tune_collector, weak=False, dispatch_uid="mcp_celery.tune_collector")
signals.import_modules.connect(_import_server, weak=False, dispatch_uid="mcp_celery.import_server")
app.steps["worker"].add(RequireServer)
