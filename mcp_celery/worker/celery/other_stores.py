"""Messages of jobs whose tasks another store keeps: the worker uses another Redis or key prefix than their server.

Such a worker would drop each job, because it finds no record. So the worker's parent process compares the mark in the
message with its store's (``engine/store_mark.py``). Where they differ and the record is not there, it gives the message
back to the broker for the right worker, once, and stops consuming that queue. It consumes the queue again when its
store has the record, or turns out to have lost it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

import kombu
from cachetools import LRUCache

from mcp_celery.broker.job_message import STORE_HEADER
from mcp_celery.engine import JobLedger, TaskRef
from mcp_celery.engine.store_mark import StoreMark, whereabouts
from mcp_celery.errors import StoredDataError, StoreUnavailableError
from mcp_celery.logs import get_logger
from mcp_celery.worker.celery.addressed import addressed
from mcp_celery.worker.job import WorkerRuntime

logger = get_logger(__name__)

LOOK_EVERY_SECONDS: Final = 5.0
"""How often the worker looks for the records of jobs that it gave back."""
MOST_LOOKED_FOR: Final = 10
"""For how many of a queue's jobs. One that is found is enough."""
MOST_GIVEN_BACK: Final = 10_000
"""How many jobs are known to have been given back before."""
HOW_TO_MEND: Final = (
    "set MCP_CELERY_REDIS_URL and MCP_CELERY_KEY_PREFIX of this worker as its server has them, or let it consume "
    "another queue"
)


@dataclass(frozen=True, slots=True)
class _Missing:
    """A job whose record this worker's store does not have."""

    ledger: JobLedger
    ref: TaskRef
    mark: StoreMark

    def is_elsewhere(self) -> bool:
        """Whether another store keeps the record.

        Raises:
            StoreUnavailableError: The store did not answer.
        """
        if self.ledger.is_kept(self.ref):
            return False
        return whereabouts(self.mark, self.ledger.mark()) == "elsewhere"


@dataclass(slots=True)
class _Stopped:
    """A queue that is not consumed.

    Attributes:
        queue: As it was consumed.
        missing: Jobs of it that were given back.
    """

    queue: kombu.Queue
    missing: deque[_Missing] = field(default_factory=lambda: deque(maxlen=MOST_LOOKED_FOR))


class OtherStores:
    """Handles jobs of other stores. Its methods are called on the thread of the worker's consumer.

    Args:
        consumer: The worker's consumer.
    """

    def __init__(self, consumer: Any) -> None:
        self._consumer: Final = consumer
        self._given_back: LRUCache[str, None] = LRUCache(MOST_GIVEN_BACK)
        self._stopped: dict[str, _Stopped] = {}

    def took(self, runtime: WorkerRuntime, message: Any) -> bool:
        """Deal with a message whose task another store keeps.

        Args:
            runtime: Of the server whose job it is.
            message: kombu's message.

        Returns:
            True: The message was given back. False: It goes the usual way.
        """
        mark = StoreMark.parse(message.headers.get(STORE_HEADER))
        ours = runtime.heart.store_mark
        if mark is None or (ours is not None and ours.mark_id == mark.mark_id):
            return False
        if (job := addressed(runtime, message)) is None:
            return False
        missing = _Missing(runtime.ledger(runtime.namespace), job.ref, mark)
        try:
            if not missing.is_elsewhere():
                return False
        except (StoreUnavailableError, StoredDataError):
            return False  # logged where it was met; the job asks the store again
        job_id = str(message.headers.get("id"))
        if runtime.other_store == "drop" or job_id in self._given_back:
            logger.error("dropped job %.200s: its task is not in %s; %s", job_id, runtime.store_name, HOW_TO_MEND)
            return False
        self._given_back[job_id] = None
        self._give_back(message, missing, job_id, runtime.store_name)
        return True

    def _give_back(self, message: Any, missing: _Missing, job_id: str, store_name: str) -> None:
        queue = self._queue_of(message)
        if queue is not None:
            name = str(queue.name)
            if name not in self._stopped:
                logger.error(
                    "gave back job %.200s and consumes queue %s no more until its task is found: it is not in %s; %s",
                    job_id,
                    name,
                    store_name,
                    HOW_TO_MEND,
                )
                self._stopped[name] = _Stopped(queue)
                self._consumer.cancel_task_queue(name)  # before the message is back: this worker must not get it again
            self._stopped[name].missing.append(missing)
        else:
            logger.error("gave back job %.200s: its task is not in %s; %s", job_id, store_name, HOW_TO_MEND)
        message.reject_log_error(logger, self._consumer.connection_errors, requeue=True)

    def _queue_of(self, message: Any) -> kombu.Queue | None:
        """The queue that a message was consumed from. Only AMQP's messages name their consumer."""
        consumed: list[kombu.Queue] = list(self._consumer.task_consumer.queues)
        info: dict[str, Any] = message.delivery_info or {}
        # The only place where kombu has the tags of a consumer, by the names of its queues.
        tags: dict[str, str] = self._consumer.task_consumer._active_tags
        for queue in consumed:
            if (tag := info.get("consumer_tag")) is not None and tags.get(str(queue.name)) == tag:
                return queue
        consumed += [one.queue for one in self._stopped.values()]  # messages of it may have been fetched before
        bound = [one for one in consumed if one.routing_key == info.get("routing_key")]
        return bound[0] if len(bound) == 1 else None

    def look(self) -> None:
        """Consume those queues again of which a job's record is found."""
        for name, stopped in list(self._stopped.items()):
            try:
                if all(one.is_elsewhere() for one in stopped.missing):
                    continue
            except StoreUnavailableError:
                return  # logged where it was met; the other queues are asked later too
            except StoredDataError:
                pass  # the record is there
            if self._consumer.task_consumer is None:
                return  # the worker connects to its broker anew
            del self._stopped[name]
            logger.warning("consumes queue %s again: the task of a job that was given back is found or lost", name)
            self._consumer.app.amqp.queues.select_add(stopped.queue)
            self._consumer.add_task_queue(name)
