"""Sending one webhook to its receiver over HTTP."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final

import httpx2

from mcp_celery.common.installed import PACKAGE
from mcp_celery.common.standard_webhooks import signatures

CONNECT_SECONDS: Final = 5.0
"""How long a connection may take, where a receiver has more time for its answer."""
MAX_RETRY_AFTER_SECONDS: Final = 3_600
"""The longest that a receiver's ``Retry-After`` holds a webhook up."""
_GONE: Final = 410
_USER_AGENT: Final = f"{PACKAGE}/{version(PACKAGE)}"


_is_sending: Final[ContextVar[bool]] = ContextVar("mcp_celery_is_sending_a_webhook", default=False)


def _names_no_receiver(_: logging.LogRecord) -> bool:
    """Drops httpx's line about each request: it shows the URL, whose path may be a secret."""
    return not _is_sending.get()


logging.getLogger(httpx2.__name__).addFilter(_names_no_receiver)


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of sending a webhook.

    Attributes:
        status: The HTTP status; None where there was no answer.
        reason: For people, where the webhook was not taken; without the URL.
        retry_after_ms: When the receiver wants it again, at the earliest.
    """

    status: int | None
    reason: str = ""
    retry_after_ms: int = 0

    @property
    def is_taken(self) -> bool:
        """Whether the receiver has the webhook."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def is_unwanted(self) -> bool:
        """Whether the receiver says that it will never take this webhook (410 Gone)."""
        return self.status == _GONE


async def send(url: str, webhook_id: str, body: bytes, keys: Sequence[bytes], *, timeout_seconds: float) -> Answer:
    """Send a webhook once. Redirects are not followed, and the body of the answer is not read.

    Args:
        url: The receiver.
        webhook_id: Tells the webhook from others, however often it is sent.
        body: Its JSON.
        keys: Sign it, in this order.
        timeout_seconds: How long all of it may take.
    """
    timestamp = int(time.time())
    headers = {
        "content-type": "application/json",
        "user-agent": _USER_AGENT,
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signatures(keys, webhook_id, timestamp, body),
    }
    token = _is_sending.set(True)
    limits = httpx2.Timeout(timeout_seconds, connect=min(CONNECT_SECONDS, timeout_seconds))
    try:
        async with (
            asyncio.timeout(timeout_seconds),
            httpx2.AsyncClient(follow_redirects=False, timeout=limits) as client,
            client.stream("POST", url, content=body, headers=headers) as response,
        ):
            status, asked = response.status_code, response.headers.get("retry-after", "")
    except TimeoutError:
        return Answer(None, f"no answer within {timeout_seconds:g} s")
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        # The texts of some errors name the URL, whose path may be a secret.
        return Answer(None, f"no answer ({type(error).__name__})")
    finally:
        _is_sending.reset(token)
    retry_after = min(int(asked), MAX_RETRY_AFTER_SECONDS) if asked.isascii() and asked.isdigit() else 0
    return Answer(status, f"HTTP status {status}", 1000 * retry_after)
