"""The queue of a server: publishes jobs, own and foreign, and revokes them through Celery.

Messages go over connections of our own, cloned from the app's, so that publisher confirms (AMQP) and time-outs change
nothing for the host's other publishers. One thread publishes single jobs, another one tasks of several, which take
longer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

from celery import Celery
from kombu.exceptions import KombuError

from mcp_celery.background import BackgroundTasks
from mcp_celery.backlog import LOOK_SECONDS, Backlog
from mcp_celery.engine import Plan, Submission, TaskRecord
from mcp_celery.errors import QueueFullError, QueueUnavailableError
from mcp_celery.logs import get_logger
from mcp_celery.own_jobs import OwnJobs, OwnPlan
from mcp_celery.publisher import Publisher
from mcp_celery.within import within

logger = get_logger(__name__)

PART_SECONDS: Final = 0.01
"""How much longer publishing may take for each job of a task that has several."""
MAX_REVOKES: Final = 1_000
"""How many revokes may wait for a broker that does not answer."""
_NO_SUCH_QUEUE: Final = "404"

Answer = TypeVar("Answer")


class CeleryQueue:
    """Fulfils :class:`mcp_celery.engine.TaskQueue`.

    Args:
        app: The Celery app whose broker, routes and queues are used. Its settings are read, never changed.
        namespace: Namespace of the server, in the names of jobs.
        default_queue: Queue of the jobs that neither the component nor a route sends elsewhere.
        timeout_seconds: How long a publish may take before the request is answered with an error.
        max_length: How many jobs may wait in a queue, None for any number.
    """

    def __init__(
        self,
        app: Celery,
        *,
        namespace: str,
        default_queue: str,
        timeout_seconds: float,
        max_length: int | None = None,
    ) -> None:
        self._app = app
        self._own = OwnJobs(app, namespace=namespace, default_queue=default_queue, timeout_seconds=timeout_seconds)
        self._timeout_seconds = timeout_seconds
        self._single = Publisher(app, "mcp-celery-publisher", timeout_seconds=timeout_seconds)
        self._several = Publisher(app, "mcp-celery-canvases", timeout_seconds=timeout_seconds)
        self._revokes = BackgroundTasks(logger, "the workers are not told to revoke a job")
        self._max_length = max_length
        self._backlogs: dict[str, Backlog] = {}
        self._said_unknown = False

    @asynccontextmanager
    async def place_for(self, submission: Submission) -> AsyncGenerator[None]:
        """Hold a place in the queue that the request's job would go to, until it is published.

        Raises:
            QueueFullError: On entry: as many jobs wait there as may.
            QueueUnavailableError: On entry: the broker did not say so in time.
        """
        most = self._max_length
        name = None if most is None else await self._asked(lambda: self._queue_of(submission))
        if most is None or name is None:
            yield
            return
        backlog = self._backlogs.setdefault(name, Backlog(most))
        if not await backlog.has_room(lambda: self._asked(lambda: self._length(name))):
            raise QueueFullError(most, retry_after_ms=round(LOOK_SECONDS * 1000))
        try:
            yield
        finally:
            backlog.leave()

    async def publish(self, record: TaskRecord, submission: Submission) -> None:
        """Publish the record's job, and wait until the broker has it.

        Raises:
            QueueUnavailableError: The broker did not take it in time. It may still arrive; without its record, and
                that is what the engine takes back, it does not run.
        """
        plan, parts = self._plan(submission), record.work.parts
        publisher, longer = (self._single, 0.0) if parts == 1 else (self._several, parts * PART_SECONDS)
        await self._asked(lambda: plan.publish(record, publisher.producer()), publisher, longer)

    async def revoke(self, *job_ids: str, terminate: bool = True) -> None:
        """Tell the workers to drop jobs, and with ``terminate`` to end them where they run.

        What is being published at the time is revoked afterwards. A broker that does not answer is logged, and told
        when it does: the record is cancelled already.
        """
        if len(self._revokes) >= MAX_REVOKES:
            logger.warning("the workers are not told to revoke %s: the broker does not answer", job_ids[0])
            return
        revoke = self._revokes.start(self._tell_of_revoke(job_ids, terminate=terminate), name="mcp-celery-revoke")
        try:
            async with within(self._timeout_seconds):
                await asyncio.shield(revoke)
        except TimeoutError:
            logger.warning("could not tell the workers to revoke %s in time", job_ids[0])

    async def _tell_of_revoke(self, job_ids: Sequence[str], *, terminate: bool) -> None:
        # In the thread that publishes such jobs, so never before them: workers forget what they were told too early.
        publisher = self._single if len(job_ids) == 1 else self._several
        try:
            await publisher.do(lambda: self._revoke(publisher, job_ids, terminate=terminate))
        except (KombuError, OSError, *publisher.broker_errors(), *publisher.refusals()) as error:
            logger.warning("could not tell the workers to revoke %s: %s", job_ids[0], type(error).__name__)

    async def _asked(
        self, work: Callable[[], Answer], publisher: Publisher | None = None, longer_seconds: float = 0.0
    ) -> Answer:
        publisher = publisher or self._single
        try:
            async with within(self._timeout_seconds + longer_seconds):
                return await publisher.do(work)
        except (KombuError, OSError, TimeoutError, *publisher.broker_errors(), *publisher.refusals()) as error:
            logger.warning("the broker (MCP_CELERY_BROKER_URL) failed: %s", type(error).__name__)
            raise QueueUnavailableError from error

    def _queue_of(self, submission: Submission) -> str | None:
        """The queue that a request's job would go to; None where a route names an exchange only."""
        queue = self._plan(submission).queue
        if queue is None:
            self._say_unknown("jobs are routed to an exchange, which may have any number of queues, or are a canvas")
        return queue

    def _plan(self, submission: Submission) -> Plan:
        return submission.plan or OwnPlan(self._own, submission)

    def _length(self, name: str) -> int:
        """How many messages wait in a queue; 0 for one that no worker has declared, and where the broker cannot say."""
        connection = self._single.connection()
        try:
            return int(self._single.looking_channel().queue_declare(name, passive=True).message_count)
        except connection.channel_errors as error:
            if str(getattr(error, "reply_code", "")) != _NO_SUCH_QUEUE:
                self._say_unknown(f"the broker does not tell ({type(error).__name__})")
        except NotImplementedError:
            self._say_unknown("the broker cannot tell")
        return 0

    def _say_unknown(self, reason: str) -> None:
        if not self._said_unknown:
            self._said_unknown = True
            logger.warning("MCP_CELERY_MAX_QUEUE_LENGTH has no effect on some jobs: %s", reason)

    def _revoke(self, publisher: Publisher, job_ids: Sequence[str], *, terminate: bool) -> None:
        """What ``app.control.revoke`` sends, but on our connection and tried once.

        Celery would send it through the host's producer pool and try for ever, and every publish would wait behind it.
        """
        control: Any = self._app.control
        mailbox = control.mailbox
        arguments = {"task_id": list(job_ids), "terminate": terminate, "signal": "SIGTERM"}
        publisher.producer().publish(
            {"method": "revoke", "arguments": arguments, "destination": None, "pattern": None, "matcher": None},
            exchange=mailbox.exchange.name,
            declare=[mailbox.exchange],
            headers={"clock": mailbox.clock.forward(), "expires": 0},
            serializer="json",  # the mailbox would take task_serializer, which the workers may not read
            retry=False,
        )

    async def aclose(self) -> None:
        """Let what is being published finish, as far as the broker answers, and close the connections."""
        patience = 3 * self._timeout_seconds  # a publish, its second try, and what closing takes
        if lost := await self._revokes.aclose(patience):
            logger.warning("the workers are not told of %d revokes: the broker does not answer", lost)
        closing = (one.aclose(patience_seconds=patience) for one in (self._single, self._several))
        await asyncio.gather(*closing)
