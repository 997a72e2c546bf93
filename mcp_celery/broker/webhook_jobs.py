"""Publishing the jobs that deliver webhooks, over a connection and a thread of their own: no task waits for them."""

from __future__ import annotations

import time
from typing import Final

from celery import Celery
from kombu.exceptions import KombuError
from redis.exceptions import NoPermissionError

from mcp_celery.broker.naming import webhook_job_name
from mcp_celery.broker.own_jobs import OwnJobs
from mcp_celery.broker.publisher import Publisher, failure_kind, is_refusal, reason_of
from mcp_celery.common.outage import Outage
from mcp_celery.config import TaskConfig
from mcp_celery.errors import QueueRefusedError, QueueUnavailableError
from mcp_celery.logs import get_logger

logger = get_logger(__name__)

EXPIRES_SECONDS: Final = 3_600
"""A job that no worker has begun after this time is dropped: by then another one is published."""
ERROR_SECONDS: Final = 60.0
"""Time between two log lines about a broker that refuses these jobs."""


class WebhookJobs:
    """Publishes the jobs that deliver the webhooks of a server. Belongs to one event loop.

    Args:
        app: The Celery app whose broker, routes and queues are used.
        namespace: The server's.
        default_queue: Queue of the jobs that no route sends elsewhere.
        queue: Queue of these jobs, ``MCP_CELERY_WEBHOOK_QUEUE``; None: as the server's other jobs.
        timeout_seconds: How long a publish may take.
        idle_seconds: After which time without a message the connection is replaced before the next.
        is_app_default: As ``is_default`` of :func:`mcp_celery.broker.queues.queue_of`, for the default queue.
    """

    def __init__(
        self,
        app: Celery,
        *,
        namespace: str,
        default_queue: str,
        queue: str | None,
        timeout_seconds: float,
        idle_seconds: float,
        is_app_default: bool,
    ) -> None:
        self._name = webhook_job_name(namespace)
        self._config = TaskConfig(queue=queue, expires=EXPIRES_SECONDS)
        self._jobs = OwnJobs(
            app,
            namespace=namespace,
            default_queue=default_queue,
            timeout_seconds=timeout_seconds,
            is_app_default=is_app_default,
        )
        self._timeout_seconds = timeout_seconds
        self._outage = Outage("the broker of the jobs that deliver webhooks", logger)
        self._error_at = 0.0
        self._publisher = Publisher(
            app, "mcp-celery-webhooks", timeout_seconds=timeout_seconds, idle_seconds=idle_seconds
        )

    async def publish(self, webhook_id: str) -> None:
        """Publish the job of a webhook; returns when the broker has it.

        Raises:
            QueueUnavailableError: The broker did not take it in time.
            QueueRefusedError: The broker has the queue with other arguments.
        """
        publisher = self._publisher
        try:
            await publisher.do(
                lambda: self._jobs.publish_webhook(self._name, webhook_id, self._config, publisher.producer())
            )
        except QueueRefusedError as error:
            self._refused(error.reason)
            raise
        except (KombuError, OSError, TimeoutError, *publisher.broker_errors(), *publisher.refusals()) as error:
            if is_refusal(error) or isinstance(error.__cause__ or error, NoPermissionError):
                self._refused(reason_of(error))
            else:
                self._outage.began(failure_kind(error), failure_kind(error))
            raise QueueUnavailableError from error
        self._outage.ended()

    def _refused(self, reason: str) -> None:
        """Log, once in a while, why the broker takes none of these jobs."""
        if (now := time.monotonic()) >= self._error_at:
            self._error_at = now + ERROR_SECONDS
            logger.error("webhooks wait, since the broker refuses the jobs that deliver them: %s", reason)

    async def aclose(self) -> None:
        """Let what is being published finish, as far as the broker answers, and close the connection."""
        await self._publisher.aclose(patience_seconds=2 * self._timeout_seconds)
