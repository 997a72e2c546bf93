"""The messages of jobs for another version of their component, or for a component that this worker does not know.

Celery loads this module in workers only: the strategy from ``ComponentJob.Strategy``, the step by its name. Both are
places where Celery lets a worker decide what becomes of a message. The worker's parent process looks at the header that
says which version the server has. Where it is not one of the worker's, the job is handed back before anything of it
starts: no slot, no claim, no event. What it cannot hand back goes the usual way: a job to the pool, where
``worker/versions.py`` decides, and an unknown one to Celery, which rejects it (``task_unknown``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from celery import bootsteps
from celery.worker.strategy import default

from mcp_celery.broker.job_message import FINGERPRINT_HEADER
from mcp_celery.engine import HandBack, HandedBack, TaskRef, wrong_version
from mcp_celery.errors import StoredDataError, StoreUnavailableError
from mcp_celery.logs import get_logger
from mcp_celery.worker.celery import other_stores
from mcp_celery.worker.celery.addressed import addressed
from mcp_celery.worker.celery.bootsteps import runtime_of, runtimes
from mcp_celery.worker.celery.other_stores import OtherStores
from mcp_celery.worker.job import ComponentJob, WorkerRuntime
from mcp_celery.worker.versions import log_hand_back, versions_of

logger = get_logger(__name__)

LOOK_EVERY_SECONDS: Final = 1.0
"""How often the worker looks whether it consumes other queues than before."""
_untyped: Any = bootsteps  # the stubs lack its constants
_ENDING: Final[tuple[int, int]] = (_untyped.CLOSE, _untyped.TERMINATE)
"""States of a worker that is to end."""
Receive = Callable[..., Any]
"""What a worker does with a message of one job: Celery's *strategy*, made for a consumer."""


@dataclass(frozen=True, slots=True)
class _Delivery:
    """A message of a job for another version than this worker's.

    Attributes:
        job_id: Celery id of the job.
        ref: Its task.
        server: Fingerprint of the component that the server has.
        worker: That of this worker, for people; None where it has no such component.
        handback: To hand it back with.
    """

    job_id: str
    ref: TaskRef
    server: str
    worker: str | None
    handback: HandBack


def strategy(job: ComponentJob, app: Any, consumer: Any) -> Receive:
    """Celery's default strategy for an MCP job, except that jobs for another version are handed back.

    Args:
        job: The job.
        app: The worker's app.
        consumer: The worker's consumer.
    """
    receive = default(job, app, consumer)
    strategies: JobStrategies = consumer.strategies

    def on_message(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any, **options: Any) -> Any:
        if strategies.other_stores.took(job.runtime, message):
            return None
        try:
            delivery = _of_other_version(consumer, job.runtime, message)
            if delivery is not None and _handed_back(job.runtime, delivery).is_over:
                return ack(logger, consumer.connection_errors)
        except (StoreUnavailableError, StoredDataError):
            pass  # logged where it was met; the pool asks the store again
        return receive(message, body, ack, reject, callbacks, **options)

    return on_message


class JobStrategies(dict[str, Receive]):
    """A consumer's strategies by the names of jobs, with one for each unknown job of the servers that it serves.

    Args:
        consumer: The worker's consumer.
    """

    def __init__(self, consumer: Any) -> None:
        super().__init__(consumer.strategies)
        self._consumer: Final = consumer
        self.other_stores: Final = OtherStores(consumer)

    def __missing__(self, name: str) -> Receive:
        runtime = runtime_of(self._consumer.app, name)
        if runtime is None:
            raise KeyError(name)
        return functools.partial(self._receive_unknown, name, runtime)

    def _receive_unknown(
        self,
        name: str,
        runtime: WorkerRuntime,
        message: Any,
        _body: Any,
        ack: Any,
        _reject: Any,
        _callbacks: Any,
        **_options: Any,
    ) -> None:
        consumer = self._consumer
        if self.other_stores.took(runtime, message):
            return
        delivery = _of_other_version(consumer, runtime, message)

        def reject(handed: HandedBack | None = None) -> None:
            if delivery is not None and handed is not None:
                _fail(runtime, delivery, handed)
            consumer.on_unknown_task(None, message, KeyError(name))

        def conclude(handed: HandedBack) -> None:
            if handed.is_over:
                ack(logger, consumer.connection_errors)
            else:
                reject(handed)

        if delivery is None:
            reject()
            return
        try:
            conclude(_handed_back(runtime, delivery))
        except StoredDataError:
            reject()
        except StoreUnavailableError:
            # Its message stays unacknowledged meanwhile: another worker gets it where this one dies. If the broker is
            # lost, it delivers the message again, and the channel of this one does nothing more.
            later = functools.partial(consumer.call_soon, conclude)
            if not runtime.heart.hand_back_later(delivery.ref, delivery.handback, later):
                reject()


def _of_other_version(consumer: Any, runtime: WorkerRuntime, message: Any) -> _Delivery | None:
    """A message as a delivery to hand back; None where its job may run here, or where it does not say so.

    What is wrong with a message is not said here: the usual way of the message says it.
    """
    server = message.headers.get(FINGERPRINT_HEADER)
    if not isinstance(server, str) or server in runtime.fingerprints:
        return None
    if (job := addressed(runtime, message)) is None:
        return None
    handback = HandBack(
        attempt=job.attempt,
        retries=job.retries,
        worker=runtime.heart.worker_id(consumer.hostname),
        key=job.key,
        most=runtime.max_handbacks,
    )
    worker = versions_of(runtime.held, component_of(message.headers.get("task")))
    return _Delivery(str(message.headers.get("id")), job.ref, server, worker, handback)


def _handed_back(runtime: WorkerRuntime, delivery: _Delivery) -> HandedBack:
    """Hand a job back. Where that is over, its message is to be acknowledged.

    Raises:
        StoreUnavailableError: The store did not answer.
        StoredDataError: The task's record cannot be used.
    """
    handed = runtime.ledger(runtime.namespace).hand_back(delivery.ref, delivery.handback)
    if handed.is_over:
        log_hand_back(delivery.job_id, delivery.server, delivery.worker, handed)
    if handed.verdict == "handed back":
        runtime.heart.publish_later(delivery.handback.key, handed.pause_ms)
    return handed


def _fail(runtime: WorkerRuntime, delivery: _Delivery, handed: HandedBack) -> None:
    """Fail the task of an unknown job, which nothing else says so well."""
    failed = wrong_version(delivery.server, delivery.worker, handed.verdict)
    handback = delivery.handback
    try:
        runtime.ledger(runtime.namespace).change(
            delivery.ref, replace(failed, attempt=handback.attempt, unless_begun=handback.retries)
        )
    except (StoreUnavailableError, StoredDataError):
        return  # Celery's signal of the unknown job tries again, and says so
    logger.error("job %s does not run: %s", delivery.job_id, failed.status_message)


def component_of(job_name: object) -> str:
    """The component in the Celery name of a job, for people: ``tool:build_report``; '' for another job."""
    parts = job_name.split(".", 3) if isinstance(job_name, str) else []
    return ":".join(parts[2:]) if len(parts) == 4 else ""


class HandingBack(bootsteps.StartStopStep):
    """Part of a worker's consumer: has it hand unknown jobs back, and advertises the components whose jobs it takes.

    It advertises them while it consumes their queues: a worker that shuts down, or is to stop consuming a queue
    (``celery control cancel_consumer``), takes no jobs. One that has lost its broker takes jobs again when it has
    connected anew, and goes on advertising: else a worker of another version that connects first would fail its jobs.
    """

    requires = ("celery.worker.consumer:Tasks",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        strategies = parent.strategies = JobStrategies(parent)
        self._other_stores = strategies.other_stores
        self._queues: frozenset[str] | None = None
        self._timers: list[Any] = []

    def start(self, parent: Any) -> None:
        """Advertise what the worker takes from its queues. Called again when the worker has connected anew."""
        self._advertise(parent)
        self._timers = [
            parent.timer.call_repeatedly(LOOK_EVERY_SECONDS, self._advertise, (parent,)),
            parent.timer.call_repeatedly(other_stores.LOOK_EVERY_SECONDS, self._other_stores.look),
        ]

    def stop(self, parent: Any) -> None:
        """Advertise nothing more, if the worker ends. It is called, too, when the connection to the broker was lost."""
        for timer in self._timers:
            timer.cancel()
        self._queues = None
        # When only the consumer stops, the worker runs on. One that remote control tells to end says so nowhere else.
        if parent.controller.blueprint.state in _ENDING:
            for runtime in runtimes(parent.app):
                runtime.heart.advertise({})

    def _advertise(self, parent: Any) -> None:
        consumed = () if parent.task_consumer is None else parent.task_consumer.queues
        queues = frozenset(str(queue.name) for queue in consumed)
        if queues == self._queues:
            return
        self._queues = queues
        for runtime in runtimes(parent.app):
            taken = (one for one in runtime.held if one.queue is None or one.queue in queues)
            runtime.heart.advertise({one.fingerprint: one.name for one in taken})
