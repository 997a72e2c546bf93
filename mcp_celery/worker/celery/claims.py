"""Claims: a worker says of each job that it received it, so that recovery knows whose death concerns the job.

The start of a job claims it as well. So a job that begins at once is left to its start, which saves the store a script
and the worker a round trip that its consumer waits for. Only the asyncio pool says before it takes a job that it has a
slot. The event loop may be held by another job nevertheless: what has not begun soon is claimed then.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from celery.worker import state

from mcp_celery.asyncio_pool.pool import TaskPool
from mcp_celery.engine import Claim, now_ms
from mcp_celery.errors import StoredDataError, StoreUnavailableError
from mcp_celery.logs import get_logger
from mcp_celery.worker.celery.bootsteps import retries_of
from mcp_celery.worker.celery.hub_call import HubCall
from mcp_celery.worker.job import WorkerRuntime
from mcp_celery.worker.job_arguments import MalformedJobError, task_of

logger = get_logger(__name__)

UNBEGUN_SECONDS: Final = 0.25
"""After what time a job that was to begin at once is claimed. Recovery allows for three seconds at least
(:attr:`RecoveryPolicy.claiming_ms`).
"""


class StartingJobs:
    """The jobs of a consumer that were to begin at once. Used on the consumer's thread.

    Args:
        consumer: The worker's consumer.
    """

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._unclaimed: list[tuple[Any, Callable[[], None]]] = []
        self._look = HubCall(self._claim_unbegun, UNBEGUN_SECONDS)

    def take(self, request: Any, claim: Callable[[], None]) -> bool:
        """Leave a job's claim to its start, if it begins at once.

        Args:
            request: Celery's request of the job, which the pool gets next.
            claim: Claims it.

        Returns:
            False: It waits for a slot, for its time or for its rate limit, or that cannot be known: claim it now.
        """
        consumer = self._consumer
        if not isinstance(consumer.pool, TaskPool) or consumer.hub is None:
            return False
        if request.eta or consumer.task_buckets[request.name] or not consumer.pool.has_room():
            return False
        self._unclaimed.append((request, claim))
        self._look.ask(consumer.hub)
        return True

    def _claim_unbegun(self) -> None:
        looked_at, self._unclaimed = self._unclaimed, []
        for request, claim in looked_at:
            # A lost connection has taken the others from the worker, and they are delivered again.
            if request in state.reserved_requests and request not in state.active_requests:
                claim()


def claim(runtime: WorkerRuntime, request: Any, starting: StartingJobs | None) -> None:
    """Claim a job that the worker received.

    Args:
        runtime: Of the job.
        request: Celery's request of the job.
        starting: What may leave the claim to the job's start; None where the consumer is not ours.
    """
    received = Claim(runtime.heart.worker_id(request.hostname), now_ms())
    try:
        ref, attempt = task_of(request.kwargs)
        retries = retries_of(request.request_dict)
        runtime.require_genuine(request.request_dict, request.kwargs, retries)
    except MalformedJobError as error:
        logger.error("could not claim job %.200r: %s", request.id, error)
        return
    noted = partial(runtime.ledger(runtime.namespace).claim, ref, attempt=attempt, retries=retries, claim=received)
    note = partial(_note, runtime, request.id, noted, received.at_ms)
    if starting is None or not starting.take(request, note):
        note()


def _note(runtime: WorkerRuntime, job_id: str, note: Callable[[], bool], at_ms: int) -> None:
    """Note a claim of that time (ms since the epoch), as soon as the store answers."""
    # This is the thread of the worker's consumer, which a silent store would hold up for its time-out, at each job.
    if runtime.heart.is_store_away and runtime.heart.claim_later(note, at_ms):
        logger.warning("could not record the claim of job %s yet", job_id)
        return
    try:
        note()
    except StoreUnavailableError:
        logger.warning("could not record the claim of job %s yet", job_id)
        runtime.heart.claim_later(note, at_ms)
    except StoredDataError as error:
        logger.error("could not record the claim of job %s: %s", job_id, error.reason)
