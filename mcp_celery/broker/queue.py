"""The queue of a server: publishes jobs, own and foreign, and revokes them through Celery.

Messages go over connections of our own, cloned from the app's, so that publisher confirms (AMQP) and time-outs change
nothing for the host's other publishers. One thread publishes single jobs, another one tasks of several, which take
longer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, TypeVar

from celery import Celery
from kombu.exceptions import KombuError
from kombu.transport import virtual
from typing_extensions import override

from mcp_celery.broker.job_message import serializer_of_messages
from mcp_celery.broker.naming import job_name
from mcp_celery.broker.own_jobs import OwnJobs, OwnPlan
from mcp_celery.broker.publisher import Publisher, failure_kind, is_silence, unusable_broker
from mcp_celery.broker.queue_limit import LOOK_SECONDS, Backlog
from mcp_celery.broker.store_messages import StoreMessages
from mcp_celery.common.background import BackgroundTasks
from mcp_celery.common.call_limiter import CallLimiter, NoAnswerError
from mcp_celery.common.outage import Outage
from mcp_celery.common.within import within
from mcp_celery.engine import JobKind, Lane, Plan, QueueMessage, Submission, TaskRecord, Unusable
from mcp_celery.engine.ports import TaskQueue
from mcp_celery.engine.retry import pauses
from mcp_celery.errors import QueueFullError, QueueRefusedError, QueueUnavailableError
from mcp_celery.logs import get_logger
from mcp_celery.sealing import UNSIGNED, MessageSigner
from mcp_celery.telemetry.traces import publishing

logger = get_logger(__name__)

PART_SECONDS: Final = 0.01
"""How much longer publishing may take for each job of a task that has several."""
LONGEST_PAUSE_SECONDS: Final = 5.0
"""Longest pause between two attempts to reach a broker that is lost."""
IDLE_SECONDS: Final = 60.0
"""After this time without a message a connection is replaced before the next, by default."""
MOST_UNPUBLISHED: Final = 32
"""How many tasks a server has created at a time whose jobs the broker does not have yet. Further requests wait before
their tasks are created: else an overloaded server's last job would wait for the publisher for longer than
``RecoveryPolicy.publishing_ms``, and be taken for lost.
"""
MAX_REVOKES: Final = 1_000
"""How many revokes may wait for a broker that does not answer."""
_NO_SUCH_QUEUE: Final = "404"

Answer = TypeVar("Answer")


class CeleryQueue(TaskQueue):
    """Fulfils :class:`mcp_celery.engine.TaskQueue`.

    Args:
        app: The Celery app whose broker, routes and queues are used. Its settings are read, never changed.
        namespace: Namespace of the server, in the names of jobs.
        default_queue: Queue of the jobs that neither the component nor a route sends elsewhere.
        timeout_seconds: How long a publish may take before the request is answered with an error.
        max_length: How many jobs may wait in a queue, None for any number.
        signer: Signs the messages of own jobs.
        store_mark: Gives what a message says of the store that keeps its record; None where that is not known yet.
        idle_seconds: After which time without a message a connection is replaced before the next.
        is_app_default: As ``is_default`` of :func:`mcp_celery.broker.queues.queue_of`, for the default queue.
        outage: Whether the broker is lost, as far as is known; the beginning and the end are logged.
        holds_queues_at: Says of the URL of a Redis broker, and of what the names of its queues begin with, whether the
            store can put messages into them.
    """

    def __init__(  # noqa: PLR0913 - each is a part of how it publishes
        self,
        app: Celery,
        *,
        namespace: str,
        default_queue: str,
        timeout_seconds: float,
        max_length: int | None = None,
        signer: MessageSigner = UNSIGNED,
        store_mark: Callable[[], str | None] = lambda: None,
        idle_seconds: float = IDLE_SECONDS,
        is_app_default: bool = False,
        outage: Outage | None = None,
        holds_queues_at: Callable[[str, str], bool] = lambda url, prefix: False,  # noqa: ARG005 - it is another one
    ) -> None:
        self._outage = outage or Outage("the broker (MCP_CELERY_BROKER_URL)", logger)
        self._app = app
        self._namespace = namespace
        self._own = OwnJobs(
            app,
            namespace=namespace,
            default_queue=default_queue,
            timeout_seconds=timeout_seconds,
            signer=signer,
            store_mark=store_mark,
            is_app_default=is_app_default,
        )
        self._messages = StoreMessages(
            app, self._own, namespace=namespace, most=max_length, holds_queues_at=holds_queues_at
        )
        self._timeout_seconds = timeout_seconds
        times = {"timeout_seconds": timeout_seconds, "idle_seconds": idle_seconds}
        self._single, self._several = (
            Publisher(app, name, **times, outage=self._outage)
            for name in ("mcp-celery-publisher", "mcp-celery-canvases")
        )
        self._return = BackgroundTasks(logger, "could not watch for the return of the broker")
        self._revokes = BackgroundTasks(logger, "could not revoke a job on the workers")
        self._unpublished = CallLimiter(MOST_UNPUBLISHED, timeout_seconds=timeout_seconds)
        self._max_length = max_length
        self._backlogs: dict[str, Backlog] = {}
        self._said_unknown = False

    @override
    @asynccontextmanager
    async def place_for(self, submission: Submission) -> AsyncGenerator[None]:
        """Hold a place in the queue that the request's job would go to, until it is published.

        Waits while :data:`MOST_UNPUBLISHED` jobs are not published yet. Foreign jobs are never taken for lost, and wait
        for nothing.

        Raises:
            QueueFullError: On entry: as many jobs wait there as may.
            QueueUnavailableError: On entry: the broker did not say so in time, or does not answer.
        """
        async with self._room_for(submission):
            if submission.plan is not None:
                yield
                return
            try:
                await self._unpublished.enter()
            except NoAnswerError:
                raise QueueUnavailableError(is_sent=False) from None  # logged with the request that was sent
            try:
                yield
            finally:
                self._unpublished.leave()

    @asynccontextmanager
    async def _room_for(self, submission: Submission) -> AsyncGenerator[None]:
        """Hold a place in a queue that is not full."""
        most = self._max_length
        name = None if most is None else await self._asked(lambda: self._queue_of(submission))
        if most is None or name is None:
            yield
            return
        backlog = self._backlogs.setdefault(name, Backlog(most))
        if not await backlog.has_room(lambda: self._known_length(name)):
            raise QueueFullError(most, retry_after_ms=round(LOOK_SECONDS * 1000))
        try:
            yield
        finally:
            backlog.leave()

    async def queue_name(self, submission: Submission) -> str | None:
        """The queue that a request's job goes to; None where a route names an exchange only.

        Raises:
            QueueUnavailableError: The app's routes were not asked in time.
        """
        return await self._asked(lambda: self._plan(submission).queue)

    @override
    async def lane(self, kind: JobKind) -> Lane | None:
        """Where jobs of our own wait, as they are routed now.

        Raises:
            QueueUnavailableError: The publisher's thread waits for a broker that does not answer.
        """
        name = kind.job_name or job_name(self._namespace, kind.task_type, kind.declared_as)
        return await self._asked(lambda: self._own.lane(name, kind.config))

    @override
    async def length(self, queue: str) -> int | None:
        """How many jobs wait in a queue; None where the broker cannot say.

        Raises:
            QueueUnavailableError: The broker did not answer in time.
        """
        length = await self._asked(lambda: self._length(queue))
        self._outage.ended()
        return length

    @override
    @contextmanager
    def message_of(self, record: TaskRecord, submission: Submission) -> Generator[QueueMessage | None]:
        with self._messages.message_of(record, submission) as message:
            yield message
        if message is not None and self._outage.is_on:
            self._outage.ended()

    @override
    async def publish(self, record: TaskRecord, submission: Submission) -> None:
        """Publish the record's job, and wait until the broker has it.

        An own job may be published twice when the connection breaks: its record grants it one start. A foreign job
        starts whenever a worker receives it, so that it is published once, whatever becomes of it.

        Raises:
            QueueUnavailableError: The broker did not take it in time. It may still arrive; without its record, and
                that is what the engine takes back, it does not run.
            QueueRefusedError: The broker has the queue with other arguments.
        """
        plan, parts = self._plan(submission), record.work.parts
        publisher, longer = (self._single, 0.0) if parts == 1 else (self._several, parts * PART_SECONDS)
        with publishing(record):
            await self._asked(
                lambda: plan.publish(record, publisher.producer()),
                publisher,
                longer,
                may_be_repeated=not record.work.is_foreign,
            )
        self._outage.ended()
        if submission.plan is None:
            self._messages.learn(record, submission)

    @override
    async def revoke(self, *job_ids: str, terminate: bool = True) -> None:
        """Tell the workers to drop jobs, and with ``terminate`` to end them where they run.

        What is being published at the time is revoked afterwards. A broker that does not answer is logged, and told
        when it does: the record is cancelled already.
        """
        if len(self._revokes) >= MAX_REVOKES:
            logger.warning("could not revoke %s on the workers: the broker does not answer", job_ids[0])
            return
        revoke = self._revokes.start(self._tell_of_revoke(job_ids, terminate=terminate), name="mcp-celery-revoke")
        try:
            async with within(self._timeout_seconds):
                await asyncio.shield(revoke)
        except TimeoutError:
            logger.warning("could not revoke %s on the workers in time", job_ids[0])

    async def revoke_now(self, *job_ids: str, terminate: bool = True) -> None:
        """As :meth:`revoke`, for callers that have to know whether the broker has taken it.

        Raises:
            QueueUnavailableError: The broker did not take it in time.
        """
        publisher = self._single if len(job_ids) == 1 else self._several
        await self._asked(lambda: self._revoke(publisher, job_ids, terminate=terminate), publisher)

    async def _tell_of_revoke(self, job_ids: Sequence[str], *, terminate: bool) -> None:
        # In the thread that publishes such jobs, so never before them: workers forget revokes that arrive too early.
        publisher = self._single if len(job_ids) == 1 else self._several
        try:
            await publisher.do_at_last(lambda: self._revoke(publisher, job_ids, terminate=terminate))
        except (KombuError, OSError, *publisher.broker_errors(), *publisher.refusals()) as error:
            logger.warning("could not revoke %s on the workers: %s", job_ids[0], type(error).__name__)

    async def _asked(
        self,
        work: Callable[[], Answer],
        publisher: Publisher | None = None,
        longer_seconds: float = 0.0,
        *,
        may_be_repeated: bool = True,
    ) -> Answer:
        publisher = publisher or self._single
        try:
            return await publisher.do(work, longer_seconds=longer_seconds, may_be_repeated=may_be_repeated)
        except QueueRefusedError as error:
            logger.error("no job can be published: %s", error.reason)
            raise
        except NoAnswerError:
            self._unpublished.fail_waiting()
            raise QueueUnavailableError(is_sent=False) from None  # logged with the request that was sent
        except (KombuError, OSError, TimeoutError, *publisher.broker_errors(), *publisher.refusals()) as error:
            self._outage.began(failure_kind(error), failure_kind(error))
            if is_silence(error):
                self._unpublished.fail_waiting()
            self.watch_for_return()
            raise QueueUnavailableError from error

    def watch_for_return(self) -> None:
        """Ask a broker that is lost until it answers, so that the log says so also where no job is published."""
        if self._outage.is_on and not self._return:
            self._return.start(self._until_it_answers(), name="mcp-celery-broker-return")

    async def _until_it_answers(self) -> None:
        for pause in pauses(LONGEST_PAUSE_SECONDS):
            await asyncio.sleep(pause)
            if not self._outage.is_on:
                return
            # Not in the publisher's thread: what is to be published must not wait for this.
            if await asyncio.to_thread(self._ask_broker) is None:
                self._outage.ended()
                return

    def _ask_broker(self) -> Unusable | None:
        return unusable_broker(self._app, self._outage.service, timeout_seconds=self._timeout_seconds)

    def _queue_of(self, submission: Submission) -> str | None:
        """The queue that a request's job would go to; None where a route names an exchange only."""
        queue = self._plan(submission).queue
        if queue is None:
            self._say_unknown("jobs are routed to an exchange, which may have any number of queues, or are a canvas")
        return queue

    def _plan(self, submission: Submission) -> Plan:
        return submission.plan or OwnPlan(self._own, submission)

    async def _known_length(self, name: str) -> int:
        """How many jobs wait in a queue; 0 where the broker cannot say, which is logged once."""
        length = await self.length(name)
        if length is None:
            self._say_unknown("the broker does not say how many jobs wait in a queue")
        return length or 0

    def _length(self, name: str) -> int | None:
        """How many messages wait in a queue; 0 where there is no such queue, None where the broker cannot say."""
        channel = self._single.looking_channel()
        connection = self._single.connection()
        if isinstance(channel, virtual.Channel) and not _counts(channel):
            return None
        try:
            return int(channel.queue_declare(name, passive=True).message_count)
        except connection.channel_errors as error:
            if str(getattr(error, "reply_code", "")) != _NO_SUCH_QUEUE:
                logger.debug("the broker does not say how many jobs wait in %s: %s", name, type(error).__name__)
                return None
            if connection.declared_entities is not None:
                # kombu declares a queue once for each connection, but this one may have been deleted since.
                connection.declared_entities.clear()
            return 0
        except NotImplementedError:
            return None

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
            # The mailbox would take task_serializer, which the workers may not read.
            serializer=serializer_of_messages(self._app),
            retry=False,
        )

    async def aclose(self) -> None:
        """Let what is being published finish, as far as the broker answers, and close the connections."""
        self._messages.close()
        await self._return.aclose()
        patience = 3 * self._timeout_seconds  # a publish, its second try, and what closing takes
        if lost := await self._revokes.aclose(patience):
            logger.warning("could not send %d revokes to the workers: the broker does not answer", lost)
        closing = (one.aclose(patience_seconds=patience) for one in (self._single, self._several))
        await asyncio.gather(*closing)


def _counts(channel: virtual.Channel) -> bool:
    """Whether a transport of kombu's own counts messages. One that does not says that each queue is empty."""
    return type(channel)._size is not virtual.Channel._size
