"""Steps that this package adds to the start of a worker, as Celery's bootsteps."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

import click
from celery import Celery, bootsteps
from celery.concurrency.solo import TaskPool as SoloPool

from mcp_celery.broker.cluster_mode import REDIS, cluster_mode_problem
from mcp_celery.broker.job_message import accepts_messages, require_serializer, serializer_of_messages
from mcp_celery.broker.publisher import bounded
from mcp_celery.errors import ConfigurationError
from mcp_celery.worker.celery.unread import UnreadMessages
from mcp_celery.worker.job import ComponentJob, WorkerRuntime
from mcp_celery.worker.job_arguments import MalformedJobError

logger = logging.getLogger(__name__)

ASKED_SECONDS: Final = 5.0
"""How long a broker may take to answer before a worker starts."""
AMQP_TRANSPORTS: Final = ("pyamqp", "amqp", "amqps")


class Vitals(bootsteps.StartStopStep):
    """Starts the heartbeats of a worker before it receives a job.

    After a warm shutdown they end when the last job has (:class:`Ending`): a step is stopped before the pool. A cold
    shutdown waits for no job.
    """

    requires = ("celery.worker.components:Pool",)

    def create(self, parent: Any) -> None:
        """Name the worker to the jobs that it will run. All steps are made before any is started."""
        for runtime in runtimes(parent.app):
            runtime.heart.name(parent.hostname)

    def start(self, parent: Any) -> None:
        """Start the heartbeat of every server whose jobs this worker runs."""
        unread = UnreadMessages(parent)
        for runtime in runtimes(parent.app):
            runtime.heart.start(parent.hostname, unread.ms, lambda: parent.pool.num_processes)

    def terminate(self, parent: Any) -> None:
        """End the heartbeats of a worker whose jobs are ended with it."""
        for runtime in runtimes(parent.app):
            runtime.heart.stop()


class FollowEnds(bootsteps.StartStopStep):
    """Has jobs follow the end of their tasks where remote control does not reach the worker while they run."""

    def create(self, parent: Any) -> None:
        """Decide it, before the pool forks. All steps are made before any is started."""
        if reason := no_remote_control(parent):
            for runtime in runtimes(parent.app):
                runtime.follows_ends = True
            logger.debug("jobs are cancelled through the task store (MCP_CELERY_REDIS_URL): %s", reason)


def no_remote_control(worker: Any) -> str | None:
    """Why no command of Celery's reaches a worker that runs a job; None where commands do.

    Args:
        worker: Celery's worker, whose pool has been chosen.
    """
    app: Celery = worker.app
    if issubclass(worker.pool_cls, SoloPool):
        return "the solo pool handles no command while a job runs"
    if not app.conf.worker_enable_remote_control:
        return "worker_enable_remote_control is off"
    if not app.connection_for_read().supports_exchange_type("fanout"):
        return "the broker carries no commands"
    return None


class Reconnection(bootsteps.StartStopStep):
    """Part of a worker's consumer, which starts anew whenever its connection to the broker was lost."""

    requires = ("celery.worker.consumer:Connection",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._was_connected = False

    def start(self, parent: Any) -> None:
        """Take back what the lost connection took from this worker. The first connection has lost nothing."""
        if self._was_connected:
            for runtime in runtimes(parent.app):
                runtime.heart.reconnected()
        self._was_connected = True


class Ending(bootsteps.StartStopStep):
    """Part of a worker's consumer, whose parts are shut down when the worker's pool has ended, warm or cold.

    No signal says so of a cold shutdown, by which Celery's pytest plugin ends its workers; and their process goes on.
    """

    requires = ("celery.worker.consumer:Tasks",)

    def shutdown(self, parent: Any) -> None:
        """End what the jobs of a pool without processes have shared."""
        for runtime in runtimes(parent.app):
            runtime.stop()


class ConsumerTimeout(bootsteps.StartStopStep):
    """Warns of a worker that RabbitMQ could end. How long it waits for an acknowledgement cannot be asked over AMQP."""

    def start(self, parent: Any) -> None:
        """Look at the broker and at what Celery does when a channel is closed."""
        broker: str = parent.app.connection_for_read().transport_cls
        if broker in AMQP_TRANSPORTS and not parent.app.conf.broker_channel_error_retry:
            logger.warning(
                "this worker ends when a job lasts longer than RabbitMQ's consumer_timeout (30 minutes by default): "
                "set broker_channel_error_retry=True"
            )


def runtimes(app: Celery) -> list[WorkerRuntime]:
    """The runtimes of the servers whose jobs an app's worker runs."""
    found = {id(job.runtime): job.runtime for job in app.tasks.values() if isinstance(job, ComponentJob)}
    return list(found.values())


def runtime_of(app: Celery, job_name: object) -> WorkerRuntime | None:
    """The runtime of the server whose job has this Celery name; None where this worker does not serve it.

    Args:
        app: The worker's app.
        job_name: The name in a message, which every writer to the queue can choose.
    """
    tag, _dot, rest = job_name.partition(".") if isinstance(job_name, str) else ("", "", "")
    namespace = rest.partition(".")[0]
    if tag != "mcp" or not namespace:
        return None
    return next((one for one in runtimes(app) if one.namespace == namespace), None)


def retries_of(headers: Mapping[str, Any]) -> int:
    """Celery's count of retries of a delivery.

    Raises:
        MalformedJobError: It is not a number.
    """
    try:
        return int(headers.get("retries") or 0)
    except (ValueError, TypeError, ArithmeticError):
        raise MalformedJobError("the count of its retries is not a number") from None


def require_readable(app: Celery) -> None:
    """Refuse to start a worker that would reject every job.

    Raises:
        ClickException: The app's ``accept_content`` lacks the serializer of our messages, or the app cannot write it.
    """
    try:
        require_serializer(app)
    except ConfigurationError as error:
        raise click.ClickException(str(error)) from error
    if not accepts_messages(app):
        raise click.ClickException(
            f"accept_content lacks {serializer_of_messages(app)!r}, so this worker would reject every job; add it"
        )


def require_fit_broker(app: Celery) -> None:
    """Refuse to start a worker whose broker is a Redis in cluster mode that kombu cannot use. A broker that does not
    answer is not asked again: the worker waits for it.

    Raises:
        ClickException: It is one. The text says what to set.
    """
    with bounded(app.connection_for_read(), ASKED_SECONDS) as connection:
        if connection.transport.driver_type != REDIS:
            return
        try:
            connection.ensure_connection(max_retries=0, interval_start=0)
            problem = cluster_mode_problem(connection)
        except Exception as error:  # noqa: BLE001 - kombu's and redis-py's errors have no common root
            logger.debug("could not ask the broker whether it is in cluster mode: %s", type(error).__name__)
            return
    if problem is not None:
        raise click.ClickException(f"this worker cannot take jobs from its broker: {problem}")


def pool_problem(worker: Any) -> str | None:
    """Why no MCP job can run on a worker's pool; None where jobs can.

    Args:
        worker: Celery's worker, whose pool has been chosen.

    Returns:
        A sentence that names the pool, and those to choose instead.
    """
    kind: str = worker.pool_cls.__module__.rpartition(".")[2]
    if kind in ("gevent", "eventlet"):
        reason = f"the {kind} pool replaces the threads and sockets that tasks need for their event loop"
    elif kind == "prefork" and worker.pool_start_method != "fork":
        reason = (
            f"processes that are started by {worker.pool_start_method} (worker_pool_start_method) do not have the jobs "
            "that the worker has imported; fork does"
        )
    else:
        return None
    return (
        f"this worker cannot run tasks of an MCP server: {reason}. Choose another pool: the asyncio pool "
        "(docs/asyncio-pool.md), -P threads, -P solo, or -P processes by fork"
    )
