"""The webhooks that no receiver has taken yet, in memory."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from typing_extensions import override

from mcp_celery.engine import TaskStatus, Webhook
from mcp_celery.engine.ports import WebhookOutbox
from mcp_celery.engine.webhooks import LONGEST_PUBLISHED_MS, MOST_WAITING, PUBLISHED_MS, WEBHOOK_LIFETIME_MS, is_told
from mcp_celery.testing.kept import Kept


@dataclass(slots=True)
class _Waiting:
    """A webhook in the outbox. Times are in ms since the epoch."""

    webhook: Webhook
    due_ms: int
    ends_ms: int
    published: int = 0
    taken_until_ms: int = 0


class MemoryWebhooksCore:
    """The webhooks of the records' core; each call is one step."""

    def __init__(self) -> None:
        super().__init__()
        self._webhooks: dict[str, _Waiting] = {}
        self._silent: dict[str, int] = {}

    def _step(self) -> AbstractContextManager[int]:
        raise NotImplementedError

    def _keep_webhook(self, kept: Kept, before: TaskStatus, now: int) -> None:
        """Keep a webhook for delivery, where the change of a task makes one."""
        record = kept.record
        if record.webhook is None or not is_told(before, record.status):
            return
        if self._waiting_webhooks() >= MOST_WAITING:
            return
        webhook = Webhook(
            id=f"msg_{secrets.token_hex(20)}",
            key=record.key,
            declared_as=record.declared_as,
            status=record.status,
            is_error=record.is_error,
            created_at_ms=record.created_at_ms,
            at_ms=record.updated_at_ms,
            sequence=record.revision,
            status_message=record.status_message if record.webhook == "contents" else None,
        )
        self._webhooks[webhook.id] = _Waiting(webhook, now, now + WEBHOOK_LIFETIME_MS)

    def _waiting_webhooks(self) -> int:
        """How many webhooks no receiver has taken yet. Each look for due ones has removed those that have expired."""
        return len(self._webhooks)

    def waiting_webhooks(self) -> int:
        """As ``WebhookOutbox.waiting``."""
        with self._step():
            return self._waiting_webhooks()

    def due_webhooks(self, limit: int) -> list[str]:
        """As ``WebhookOutbox.due``."""
        with self._step() as now:
            self._webhooks = {one: waiting for one, waiting in self._webhooks.items() if waiting.ends_ms > now}
            self._silent = {one: until for one, until in self._silent.items() if until > now}
            due = [waiting for waiting in self._webhooks.values() if waiting.due_ms <= now]
            found = sorted(due, key=lambda one: one.due_ms)[:limit]
            for one in found:
                one.due_ms = now + min(PUBLISHED_MS * 2**one.published, LONGEST_PUBLISHED_MS)
                one.published += 1
            return [one.webhook.id for one in found]

    def take_webhook(self, webhook_id: str, lease_ms: int) -> Webhook | None:
        """As ``WebhookOutbox.take``."""
        with self._step() as now:
            found = self._webhooks.get(webhook_id)
            if found is None or found.taken_until_ms > now:
                return None
            found.due_ms = found.taken_until_ms = now + lease_ms
            return found.webhook

    def postpone_webhook(self, webhook_id: str, after_ms: int, *, tried: bool) -> None:
        """As ``WebhookOutbox.postpone``."""
        with self._step() as now:
            if (found := self._webhooks.get(webhook_id)) is not None:
                found.due_ms, found.taken_until_ms, found.published = now + after_ms, 0, 0
                found.webhook = replace(found.webhook, attempts=found.webhook.attempts + tried)

    def settle_webhook(self, webhook_id: str) -> None:
        """As ``WebhookOutbox.settle``."""
        with self._step():
            self._webhooks.pop(webhook_id, None)

    def silence(self, receiver: str, for_ms: int) -> None:
        """As ``WebhookOutbox.silence``."""
        with self._step() as now:
            self._silent[receiver] = now + for_ms

    def silent_ms(self, receiver: str) -> int:
        """As ``WebhookOutbox.silent_ms``."""
        with self._step() as now:
            return max(0, self._silent.get(receiver, 0) - now)


class MemoryWebhooks(WebhookOutbox):
    """The same for event loops. Fulfils :class:`mcp_celery.engine.WebhookOutbox`."""

    def __init__(self, core: MemoryWebhooksCore) -> None:
        self._core = core

    @override
    async def due(self, limit: int) -> Sequence[str]:
        return self._core.due_webhooks(limit)

    @override
    async def waiting(self) -> int:
        return self._core.waiting_webhooks()

    @override
    async def take(self, webhook_id: str, lease_ms: int) -> Webhook | None:
        return self._core.take_webhook(webhook_id, lease_ms)

    @override
    async def postpone(self, webhook_id: str, after_ms: int, *, tried: bool) -> None:
        self._core.postpone_webhook(webhook_id, after_ms, tried=tried)

    @override
    async def settle(self, webhook_id: str) -> None:
        self._core.settle_webhook(webhook_id)

    @override
    async def silence(self, receiver: str, for_ms: int) -> None:
        self._core.silence(receiver, for_ms)

    @override
    async def silent_ms(self, receiver: str) -> int:
        return self._core.silent_ms(receiver)

    @override
    async def aclose(self) -> None:
        """Close nothing: the memory is the process's."""
