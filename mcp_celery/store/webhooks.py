"""The webhooks that no receiver has taken yet, in Redis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

from typing_extensions import override

from mcp_celery.engine import MOVES, TaskRef, Webhook
from mcp_celery.engine.ports import WebhookOutbox
from mcp_celery.engine.webhooks import LONGEST_PUBLISHED_MS, PUBLISHED_MS
from mcp_celery.errors import StoredDataError
from mcp_celery.sealing import SealError
from mcp_celery.store.codec import flat_to_mapping, one_of
from mcp_celery.store.records import RedisTaskStore
from mcp_celery.store.scripts import Command


class RedisWebhooks(WebhookOutbox):
    """Fulfils :class:`mcp_celery.engine.WebhookOutbox`.

    Args:
        store: Whose connections are used. It closes with this.
    """

    def __init__(self, store: RedisTaskStore) -> None:
        self._store = store
        self._keys = store.keys

    @override
    async def due(self, limit: int) -> list[str]:
        command = Command(
            "webhooks",
            [self._keys.webhooks],
            [limit, self._keys.webhook(""), PUBLISHED_MS, LONGEST_PUBLISHED_MS],
            lambda reply: [one.decode() for one in cast("list[bytes]", reply)],
        )
        return await self._store.run(command)

    @override
    async def waiting(self) -> int:
        return int(await self._store.on_index("ZCARD", self._keys.webhooks))

    @override
    async def take(self, webhook_id: str, lease_ms: int) -> Webhook | None:
        return await self._run(webhook_id, lease_ms, "take")

    @override
    async def postpone(self, webhook_id: str, after_ms: int, *, tried: bool) -> None:
        await self._run(webhook_id, after_ms, "tried" if tried else "untried")

    async def _run(self, webhook_id: str, ms: int, what: Literal["take", "tried", "untried"]) -> Webhook | None:
        """Run the script. A webhook that cannot be read is removed from the index, and logged."""

        def parse(reply: Any) -> Webhook | None:
            return None if reply is None else self._read(webhook_id, flat_to_mapping(cast("list[bytes]", reply)))

        names = [self._keys.webhooks, self._keys.webhook(webhook_id)]
        try:
            return await self._store.run(Command("webhook", names, [webhook_id, ms, what], parse))
        except StoredDataError as error:
            await self._store.remove("ZREM", self._keys.webhooks, [webhook_id], error.reason)
            return None

    def _read(self, webhook_id: str, fields: Mapping[str, str]) -> Webhook:
        key = fields["key"]
        message = fields.get("status_message")
        if message:
            try:
                message = self._store.seals.openers(TaskRef.of_key(key)).message(message)
            except SealError:
                message = None  # sealed with other keys than ours; the rest of the webhook holds all the same
        return Webhook(
            id=webhook_id,
            key=key,
            declared_as=fields.get("declared_as"),
            status=one_of(MOVES, fields["status"]),
            is_error=fields.get("is_error") == "1",
            created_at_ms=int(fields["created_at_ms"]),
            at_ms=int(fields["at_ms"]),
            sequence=int(fields["sequence"]),
            status_message=message or None,
            attempts=int(fields.get("attempts", 0)),
        )

    @override
    async def settle(self, webhook_id: str) -> None:
        await self._store.on_index("ZREM", self._keys.webhooks, webhook_id)
        await self._store.on_index("DEL", self._keys.webhook(webhook_id))

    @override
    async def silence(self, receiver: str, for_ms: int) -> None:
        client: Any = self._store.client.redis
        await self._store.guarded(lambda: client.set(self._keys.silent(receiver), "1", px=for_ms))

    @override
    async def silent_ms(self, receiver: str) -> int:
        client: Any = self._store.client.redis
        return max(0, await self._store.guarded(lambda: client.pttl(self._keys.silent(receiver))))

    @override
    async def aclose(self) -> None:
        await self._store.aclose()
