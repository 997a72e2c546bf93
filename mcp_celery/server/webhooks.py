"""The webhooks of a server: where each goes, and the Celery job that delivers it.

``engine/webhooks.py`` says how webhooks are kept. The job's message holds the id of one alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import celery
from celery import Celery

from mcp_celery.broker.naming import webhook_job_name
from mcp_celery.common.jsonable import json_text
from mcp_celery.common.standard_webhooks import HOW_TO_MAKE_A_SECRET, shown_url
from mcp_celery.components.declarations import ComponentKey
from mcp_celery.config import TaskConfig
from mcp_celery.engine import Declared, Webhook, WebhookKind, WebhookOutbox, now_ms
from mcp_celery.engine.webhooks import LONGEST_PAUSE_MS
from mcp_celery.errors import ConfigurationError, StoreUnavailableError
from mcp_celery.logs import get_logger
from mcp_celery.server.webhook_receiver import Answer, send
from mcp_celery.settings import ENV_PREFIX, Settings
from mcp_celery.telemetry.instruments import WEBHOOK_ATTEMPTS

logger = get_logger(__name__)

LEASE_MS: Final = 5_000
"""For how much longer than its receiver has, a job has a webhook: then its worker is taken for dead."""
SILENT_MS: Final = 30_000
"""For how long the webhooks of a receiver wait that did not answer one of them."""
NO_SECRET_MS: Final = 60_000
"""In what time a webhook is tried again that nothing could sign."""

if TYPE_CHECKING:
    _CeleryTask = celery.Task[..., None]
else:
    _CeleryTask = celery.Task


class Webhooks:
    """The webhooks of one server.

    Args:
        settings: The secrets, the receiver of components that name none, and how long to try.
        namespace: The server's.
        declared: What the components declare.
        open_outbox: Opens the webhooks that are not delivered yet, for one event loop.
    """

    def __init__(
        self, settings: Settings, namespace: str, declared: Declared, open_outbox: Callable[[], WebhookOutbox]
    ) -> None:
        self._settings = settings
        self._namespace = namespace
        self._declared = declared
        self._open_outbox = open_outbox

    @property
    def is_on(self) -> bool:
        """Whether webhooks are delivered: there are secrets to sign them."""
        return self._settings.has_webhooks

    def check(self, components: Mapping[ComponentKey, TaskConfig]) -> None:
        """Refuse what could not be delivered.

        Args:
            components: Those that run as tasks, with their configuration.

        Raises:
            ConfigurationError: A component names a receiver, and nothing signs webhooks; or the file of the secrets
                cannot be used.
        """
        name = f"{ENV_PREFIX}WEBHOOK_SECRETS"
        for (task_type, component), config in () if self.is_on else components.items():
            if config.webhook:
                raise ConfigurationError(
                    f"the {task_type} {component!r} names a receiver of webhooks, but nothing signs them: set {name} "
                    f"or {name}_FILE; {HOW_TO_MAKE_A_SECRET}"
                )
        self._settings.webhook_keys()

    def kind_of(self, config: TaskConfig) -> WebhookKind | None:
        """The webhook settings of a component; None where it has no webhooks."""
        if not self.is_on or self._receiver_of(config) is None:
            return None
        return "contents" if self._settings.webhook_contents else "state"

    def _receiver_of(self, config: TaskConfig) -> str | None:
        return self._settings.webhook_url if config.webhook is None else config.webhook or None

    def register(self, app: Celery) -> None:
        """Register the job that delivers webhooks with a worker's app."""
        if self.is_on:
            attributes = {"name": webhook_job_name(self._namespace), "webhooks": self}
            app.register_task(type("WebhookJob", (WebhookJob,), attributes)())

    @asynccontextmanager
    async def outbox(self) -> AsyncGenerator[WebhookOutbox]:
        """The webhooks that are not delivered yet, on the running event loop."""
        outbox = self._open_outbox()
        try:
            yield outbox
        finally:
            await outbox.aclose()

    async def deliver(self, outbox: WebhookOutbox, webhook_id: str) -> None:
        """Deliver a webhook, unless another process does or its receiver does not answer now. It is tried again later.

        Raises:
            StoreUnavailableError: The store did not answer. The webhook is due again after its lease.
        """
        settings = self._settings
        webhook = await outbox.take(webhook_id, settings.webhook_timeout_ms + LEASE_MS)
        if webhook is None:
            return
        _, config = await self._declared(webhook.task.task_type, webhook.task.component_identifier)
        url = self._receiver_of(config)
        if url is None:
            logger.info("dropped webhook %s: its component has no receiver any more", _shown(webhook))
            await outbox.settle(webhook.id)
            return
        receiver = hashlib.sha256(url.encode()).hexdigest()[:32]
        if (silent_ms := await outbox.silent_ms(receiver)) > 0:
            await self._wait_for_receiver(outbox, webhook, silent_ms, url)
            return
        try:
            keys = await asyncio.to_thread(settings.webhook_keys)
        except ConfigurationError as error:
            logger.error("could not sign webhook %s: %s", _shown(webhook), error)
            await outbox.postpone(webhook.id, NO_SECRET_MS, tried=False)
            return
        body = json_text(webhook.payload(self._namespace, contents=settings.webhook_contents)).encode()
        answer = await send(url, webhook.id, body, keys, timeout_seconds=settings.webhook_timeout_ms / 1000)
        await self._settle(outbox, webhook, answer, url)
        if answer.status is None:
            await outbox.silence(receiver, SILENT_MS)

    async def _wait_for_receiver(self, outbox: WebhookOutbox, webhook: Webhook, silent_ms: int, url: str) -> None:
        """Let a webhook wait whose receiver did not answer another one; give it up where its time is over by then.

        The older it is, the longer it waits: each look at it takes a job.
        """
        now = now_ms()
        left_ms = self._try_until_ms(webhook) - now
        if silent_ms < left_ms:
            longest_ms = max(SILENT_MS, min((now - webhook.at_ms) // 2, LONGEST_PAUSE_MS))
            await outbox.postpone(webhook.id, min(silent_ms + _up_to(longest_ms), left_ms), tried=False)
            return
        await outbox.settle(webhook.id)
        WEBHOOK_ATTEMPTS(1, {"outcome": "given_up"})
        logger.error(
            "gave up webhook %s to %s after %d attempts: the receiver has not answered others either",
            _shown(webhook),
            shown_url(url),
            webhook.attempts,
        )

    def _try_until_ms(self, webhook: Webhook) -> int:
        """Until when a webhook is tried, in ms since the epoch."""
        return webhook.at_ms + 1000 * self._settings.webhook_retry_seconds

    async def _settle(self, outbox: WebhookOutbox, webhook: Webhook, answer: Answer, url: str) -> None:
        """Forget a webhook that is delivered or given up; have another one tried again."""
        where, number = shown_url(url), webhook.attempts + 1
        pause_ms = max(webhook.pause_ms(), answer.retry_after_ms)
        is_late = now_ms() + pause_ms > self._try_until_ms(webhook)
        if not (answer.is_taken or answer.is_unwanted or is_late):
            await outbox.postpone(webhook.id, pause_ms, tried=True)
            WEBHOOK_ATTEMPTS(1, {"outcome": "failed"})
            logger.warning(
                "could not deliver webhook %s to %s, trying again in %d s: %s",
                _shown(webhook),
                where,
                round(pause_ms / 1000),
                answer.reason,
            )
            return
        await outbox.settle(webhook.id)
        WEBHOOK_ATTEMPTS(1, {"outcome": "delivered" if answer.is_taken else "given_up"})
        if answer.is_taken:
            logger.info("delivered webhook %s to %s: attempt=%d", _shown(webhook), where, number)
        elif answer.is_unwanted:
            logger.warning("gave up webhook %s: %s does not want it (410 Gone)", _shown(webhook), where)
        else:
            logger.error(
                "gave up webhook %s to %s after %d attempts: %s", _shown(webhook), where, number, answer.reason
            )

    async def deliver_alone(self, webhook_id: str) -> None:
        """Deliver a webhook, over a connection of its own."""
        async with self.outbox() as outbox:
            await self.deliver(outbox, webhook_id)


def _shown(webhook: Webhook) -> str:
    return f"{webhook.id} of task {webhook.shown_task_id} ({webhook.status})"


def _up_to(ms: int) -> int:
    return round(ms * random.random())  # noqa: S311 - it keeps no secret


class WebhookJob(_CeleryTask):
    """The Celery task that delivers one webhook. Its name is ``mcp.{namespace}.webhook``."""

    # The outbox publishes it again, however this job ends.
    ignore_result = True
    max_retries = 0

    webhooks: Webhooks

    def run(self, webhook_id: str) -> None:
        """Deliver a webhook.

        Args:
            webhook_id: Which one.
        """
        try:
            asyncio.run(self.webhooks.deliver_alone(str(webhook_id)))
        except StoreUnavailableError as error:
            logger.warning("could not deliver webhook %.60s, which is due again soon: %s", webhook_id, error)
