"""What our jobs add to the start of a worker, as Celery's bootsteps."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, Final

import click
from celery import Celery, bootsteps

from mcp_celery.worker.job import ComponentJob, WorkerRuntime

logger = logging.getLogger(__name__)

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
        for runtime in runtimes(parent.app):
            runtime.heart.start(parent.hostname)

    def terminate(self, parent: Any) -> None:
        """End the heartbeats of a worker whose jobs are ended with it."""
        for runtime in runtimes(parent.app):
            runtime.heart.stop()


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
    """What the jobs of each server share that an app's worker runs."""
    found = {id(job.runtime): job.runtime for job in app.tasks.values() if isinstance(job, ComponentJob)}
    return list(found.values())


def require_json(app: Celery) -> None:
    """Refuse to start a worker that would reject every job.

    Raises:
        ClickException: The app's ``accept_content`` lacks JSON.
    """
    accepted: Iterable[object] = app.conf.accept_content or ()
    if "json" not in {str(one).removeprefix("application/") for one in accepted}:
        raise click.ClickException("accept_content lacks 'json', so this worker would reject every job; add it")
