"""Reading Celery's result backend, which holds what jobs returned."""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from urllib.parse import urlsplit

from celery import Celery
from celery.exceptions import CeleryError
from kombu.exceptions import KombuError

from mcp_celery.engine import StoredResult
from mcp_celery.settings import celery_url

logger = logging.getLogger(__name__)


class CeleryResults:
    """Fulfils :class:`mcp_celery.engine.TaskResults` over whatever result backend the app has.

    Args:
        app: The Celery app.
        timeout_seconds: How long a read may take.
    """

    def __init__(self, app: Celery, *, timeout_seconds: float) -> None:
        self._app = app
        self._timeout_seconds = timeout_seconds

    @property
    def _backend(self) -> Any:
        return self._app.backend

    def lives_in(self, redis_url: str) -> bool:
        """Whether results are kept in the Redis of the task records, where one script reads both."""
        url: str | None = getattr(self._backend, "url", None)
        return url is not None and _place(url) == _place(celery_url(redis_url))

    def key(self, job_id: str) -> str:
        """Where a Redis backend keeps a job's result."""
        key: bytes | str = self._backend.get_key_for_task(job_id)
        return key.decode() if isinstance(key, bytes) else key

    def decode(self, payload: bytes) -> StoredResult | None:
        """Read what the backend stored, in the serializer and compression that the app is set to."""
        try:
            return _stored(self._backend.decode(payload))
        except (KombuError, CeleryError, ValueError, KeyError, TypeError) as error:
            logger.error("a stored result cannot be decoded: %s", type(error).__name__)
            return None

    async def read(self, job_id: str) -> StoredResult | None:
        """The job's stored result, read off the event loop. None: none yet, or the backend does not answer."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await asyncio.to_thread(self._read, job_id)
        except Exception as error:  # noqa: BLE001 - backends raise their drivers' own errors, which have no common root
            logger.warning("the result backend did not answer: %s", type(error).__name__)
            return None

    def _read(self, job_id: str) -> StoredResult | None:
        meta: dict[str, Any] = self._backend.get_task_meta(job_id, cache=False)
        return _stored(meta)


def _stored(meta: dict[str, Any]) -> StoredResult:
    value = meta["result"]
    if isinstance(value, BaseException):
        value = {"exc_type": type(value).__name__, "exc_message": list(value.args)}
    return StoredResult(str(meta["status"]), value)


def _place(url: str) -> tuple[str, str | None, int | None, str, str]:
    """What tells two Redis databases apart in their URLs, however they are written."""
    parts = urlsplit(url)
    if parts.scheme in ("redis+socket", "socket"):
        database = dict(one.split("=", 1) for one in parts.query.split("&") if "=" in one).get("virtual_host", "0")
        return ("socket", None, None, parts.path, database.strip("/") or "0")
    return ("tcp", parts.hostname or "localhost", parts.port or 6379, "", parts.path.strip("/") or "0")
