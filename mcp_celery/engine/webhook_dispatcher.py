"""Looks into the outbox of webhooks (``webhooks.py``), and has those delivered that are due."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from mcp_celery.engine.ports import WebhookOutbox
from mcp_celery.engine.retry import pauses
from mcp_celery.engine.webhooks import FIRST_PAUSE_MS, MOST_WAITING
from mcp_celery.errors import McpCeleryError, StoreUnavailableError
from mcp_celery.logs import get_logger

logger = get_logger(__name__)

BATCH: Final = 100
"""How many webhooks are taken up at a time."""
LOOK_SECONDS: Final = 1.0
"""Time between two looks into the outbox."""
LONGEST_LOOK_SECONDS: Final = 15.0
"""The longest such time while the store or the broker does not answer."""
WARN_SECONDS: Final = 60.0
"""Time between two log lines about an outbox that is full."""

Deliver = Callable[[str], Awaitable[None]]
"""Has the webhook of an id delivered. Raises ``McpCeleryError`` where it cannot be tried now."""


class WebhookDispatcher:
    """Has the webhooks that are due delivered, for ever.

    Args:
        outbox: The webhooks.
        deliver: Publishes the job of a webhook, or delivers it itself where no worker does.
        at_a_time: How many are handed to ``deliver`` at a time.
    """

    def __init__(self, outbox: WebhookOutbox, deliver: Deliver, *, at_a_time: int = 1) -> None:
        self._outbox = outbox
        self._deliver = deliver
        self._at_a_time = at_a_time
        self._count_at = 0.0

    async def run(self) -> None:
        """Look into the outbox for ever."""
        pause = pauses(LONGEST_LOOK_SECONDS)
        while True:
            try:
                more = await self.look()
            except McpCeleryError as error:
                logger.debug("could not publish the delivery of webhooks yet: %s", error)
                await asyncio.sleep(next(pause))
                continue
            except Exception:
                logger.exception("could not look for due webhooks")  # and the next one may not
                await asyncio.sleep(LONGEST_LOOK_SECONDS)
                continue
            pause = pauses(LONGEST_LOOK_SECONDS)
            if not more:
                await asyncio.sleep(LOOK_SECONDS * random.uniform(0.5, 1))  # noqa: S311 - it keeps no secret

    async def look(self) -> bool:
        """Have the webhooks delivered that are due now.

        Returns:
            Whether there was a batch of them.

        Raises:
            McpCeleryError: The store or the broker did not answer.
        """
        found = await self._outbox.due(BATCH)
        for start in range(0, len(found), self._at_a_time):
            some = found[start : start + self._at_a_time]
            outcomes = await asyncio.gather(*map(self._deliver, some), return_exceptions=True)
            if errors := [one for one in outcomes if isinstance(one, BaseException)]:
                await self._give_back(found[start:])
                raise errors[0]
        await self._warn_of_a_full_outbox()
        return len(found) >= BATCH

    async def _warn_of_a_full_outbox(self) -> None:
        if (now := time.monotonic()) < self._count_at:
            return
        self._count_at = now + WARN_SECONDS
        if await self._outbox.waiting() >= MOST_WAITING:
            logger.error(
                "dropping webhooks, since %d wait to be delivered: check the receivers of MCP_CELERY_WEBHOOK_URL and "
                "TaskConfig(webhook=…), and the workers that deliver webhooks",
                MOST_WAITING,
            )

    async def _give_back(self, webhook_ids: Sequence[str]) -> None:
        """Let webhooks be due again soon whose jobs could not be published. If that fails they are due later."""
        for webhook_id in webhook_ids:
            try:
                await self._outbox.postpone(webhook_id, FIRST_PAUSE_MS, tried=False)
            except StoreUnavailableError:
                return
