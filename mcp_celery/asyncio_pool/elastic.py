"""Lets an asyncio pool have more slots while its jobs only wait, and as many more messages prefetched.

Provisional seam: what adds to the prefetched messages is ``Consumer._update_prefetch_count``, which Celery's
``pool_grow`` uses too. Celery's autoscaler is no help here: it prefetches for its highest number of slots from the
start, and so a worker whose jobs compute would keep hundreds of them from the others.
"""

from __future__ import annotations

import logging
import resource
from typing import Any, Final

from celery import Celery, bootsteps
from celery.exceptions import ImproperlyConfigured
from celery.utils.quorum_queues import detect_quorum_queues

from mcp_celery.asyncio_pool.growth import Growth
from mcp_celery.asyncio_pool.pool import TaskPool

logger = logging.getLogger(__name__)

GROW_TO_SETTING: Final = "worker_asyncio_grow_to"
LOOK_EVERY_SECONDS: Final = 1.0
"""How often the pool is looked at whether or not jobs arrive: retries, ETAs and rate limits let jobs begin by
themselves."""
SHRINK_EVERY_SECONDS: Final = 10.0
"""How often slots that are not needed any more are looked for."""
FILES_PER_SLOT: Final = 2
"""A job that waits has a socket open, as a rule, and the worker needs files of its own."""


class Elastic(bootsteps.StartStopStep):
    """Part of a worker's consumer where ``worker_asyncio_grow_to`` is set, and the pool is ours.

    Not with ``--autoscale``, which sizes the pool itself. Nor with ``worker_eta_task_limit``: kombu bounds by it what
    is added to the prefetched messages, but not what is taken off again.
    """

    requires = ("celery.worker.consumer:Tasks",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._consumer = parent
        self._growth = Growth(parent.pool, grow_to(parent.app))
        self._weighs = False
        self._timers: list[Any] = []

    def include_if(self, parent: Any) -> bool:
        """Whether this worker's pool grows."""
        sized_otherwise = parent.controller.autoscale or parent.app.conf.worker_eta_task_limit
        return isinstance(parent.pool, TaskPool) and not sized_otherwise and grow_to(parent.app) > 0

    def start(self, parent: Any) -> None:
        """Look at the pool whenever a job arrives. Called again when the worker has connected anew."""
        if detect_quorum_queues(parent.app, parent.connection.transport.driver_type)[0]:
            logger.info(
                "the number of slots stays %d: RabbitMQ does not let a consumer of a quorum queue change what it "
                "prefetches; -c or worker_concurrency sets the number",
                parent.pool.limit,
            )
            return
        parent.on_task_message.add(self._look)
        self._timers = [
            parent.timer.call_repeatedly(LOOK_EVERY_SECONDS, self._look),
            parent.timer.call_repeatedly(SHRINK_EVERY_SECONDS, self._shrink),
        ]

    def stop(self, parent: Any) -> None:
        """Look no longer: the connection is lost, or the worker ends."""
        parent.on_task_message.discard(self._look)
        while self._timers:
            self._timers.pop().cancel()

    def info(self, obj: Any) -> Any:  # noqa: ARG002 - Celery's
        """The values that ``celery inspect stats`` shows."""
        return {"asyncio-growth": self._growth.info()}

    def _look(self, _request: Any = None) -> None:
        if not self._weighs and self._growth.is_short():
            self._weighs = True
            self._consumer.pool.spawn(self._weigh, "asyncio-pool-growth")

    async def _weigh(self) -> None:
        try:
            grows = await self._growth.wait_for_time()
        finally:
            self._weighs = False  # before the pool grows: what arrives then is looked at
        if grows:
            self._consumer.pool.post(self._grow)

    def _grow(self) -> None:
        if self._timers and (added := self._growth.add()):
            self._consumer._update_prefetch_count(added)
            logger.info("grew to %d slots: the jobs mostly wait", self._consumer.pool.limit)
            self._look()  # those that were prefetched before may fill them at once

    def _shrink(self) -> None:
        if removed := self._growth.remove():
            self._consumer._update_prefetch_count(-removed)
            logger.info("shrank to %d slots: fewer jobs run", self._consumer.pool.limit)


def grow_to(app: Celery) -> int:
    """How many slots an app's asyncio pool may have at most; 0: as many as at the start.

    That is what the app says, as far as the files suffice that the process may open.

    Raises:
        ImproperlyConfigured: The setting is no number.
    """
    value: Any = app.conf.get(GROW_TO_SETTING) or 0
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ImproperlyConfigured(f"{GROW_TO_SETTING} must be a number of jobs, 0 or more, not {value!r}")
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return value if files == resource.RLIM_INFINITY else min(value, files // FILES_PER_SLOT)
