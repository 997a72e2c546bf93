"""Reading Celery's result backend, which holds what jobs returned."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pickle import UnpicklingError
from time import monotonic
from typing import Any, Final

from celery import Celery
from celery.backends.cache import CacheBackend
from celery.backends.redis import RedisBackend
from celery.exceptions import SecurityError
from celery.states import PENDING
from kombu.exceptions import SerializationError, SerializerNotInstalled

from mcp_celery.engine import UNREADABLE, StoredResult
from mcp_celery.within import within

logger = logging.getLogger(__name__)

READERS: Final = 8
"""How many results are read at a time."""
FORGET_SECONDS: Final = 0.1
"""How long forgetting one of many results may take."""
_UNREADABLE: Final = (SerializationError, SerializerNotInstalled, SecurityError, UnpicklingError, ImportError)
"""What backends raise of a result that they hold and cannot give."""


class CeleryResults:
    """Fulfils :class:`mcp_celery.engine.TaskResults` over whatever result backend the app has.

    Args:
        app: The Celery app.
        timeout_seconds: How long a read may take.
    """

    def __init__(self, app: Celery, *, timeout_seconds: float) -> None:
        self._app = app
        self._timeout_seconds = timeout_seconds
        # Not the event loop's own: a backend that hangs would keep those from all else that needs them.
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="mcp-celery-results")

    @property
    def _backend(self) -> Any:
        return self._app.backend

    @property
    def url(self) -> str | None:
        """Where the result backend is, None where it does not say."""
        return getattr(self._backend, "url", None)

    def key(self, job_id: str) -> str:
        """Where a Redis backend keeps a job's result."""
        key: bytes | str = self._backend.get_key_for_task(job_id)
        return key.decode() if isinstance(key, bytes) else key

    def decode(self, payload: bytes) -> StoredResult:
        """Read what the backend stored, in the serializer and compression that the app is set to."""
        try:
            return _stored(self._backend.decode(payload))
        except Exception as error:  # noqa: BLE001 - what is unpickled may raise anything
            return _unreadable(error)

    async def read(self, job_id: str) -> StoredResult | None:
        """The job's stored result, read off the event loop. None: none yet, or the backend does not answer."""
        try:
            async with within(self._timeout_seconds):
                return await asyncio.get_running_loop().run_in_executor(self._threads, self._read, job_id)
        except Exception as error:  # noqa: BLE001 - backends raise their drivers' own errors, which have no common root
            logger.warning("the result backend did not answer: %s", type(error).__name__)
            return None

    async def read_many(self, job_ids: Sequence[str]) -> Mapping[str, StoredResult | None]:
        """The jobs' stored results, in one request where the backend can; else it is asked for as long as it answers.

        Returns:
            By Celery id, None for each job that has none; what the backend did not give is left out.
        """
        read = self._read_together if isinstance(self._backend, RedisBackend | CacheBackend) else self._read_each
        found: dict[str, StoredResult | None] = {}
        unread = deque(job_ids)
        try:
            while unread:
                # A reader returns well before it would be given up, unless the backend hangs.
                until = monotonic() + self._timeout_seconds / 2
                async with within(self._timeout_seconds):
                    await asyncio.get_running_loop().run_in_executor(self._threads, read, unread, found, until)
        except Exception as error:  # noqa: BLE001 - as above
            logger.warning("the result backend did not answer: %s", type(error).__name__)
        return found.copy()

    async def forget(self, job_ids: Sequence[str]) -> None:
        """Forget the stored results of jobs, off the event loop; what fails to be forgotten lives its own time."""
        try:
            async with within(self._timeout_seconds + FORGET_SECONDS * len(job_ids)):
                await asyncio.get_running_loop().run_in_executor(self._threads, self._forget, job_ids)
        except Exception as error:  # noqa: BLE001 - as above
            logger.warning("the result backend did not forget %d results: %s", len(job_ids), type(error).__name__)

    def _forget(self, job_ids: Sequence[str]) -> None:
        for job_id in job_ids:
            self._backend.forget(job_id)

    def close(self) -> None:
        """Read no more; what is being read is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _read(self, job_id: str) -> StoredResult | None:
        backend = self._backend
        if self._app.conf.task_always_eager:
            # Celery stores no results then, and warns of whoever reads one. Ours are stored.
            return _stored(backend._get_task_meta_for(job_id))
        return _stored(backend.get_task_meta(job_id, cache=False))

    def _read_together(self, unread: deque[str], found: dict[str, StoredResult | None], _until: float) -> None:
        """Read results in one request."""
        keys = {job_id: self._backend.get_key_for_task(job_id) for job_id in unread}
        given: Any = self._backend.mget(list(keys.values()))
        # Memcached's clients give what there is, by key; Redis gives values in the order of the keys.
        payloads = [given.get(key) for key in keys.values()] if hasattr(given, "items") else given
        for job_id, payload in zip(keys, payloads, strict=True):
            found[job_id] = _unless_pending(self.decode(payload)) if payload else None
        unread.clear()

    def _read_each(self, unread: deque[str], found: dict[str, StoredResult | None], until: float) -> None:
        """Read results one by one, as many as it can until a time of the monotonic clock.

        Raises:
            Exception: The backend gave none; it is its driver's.
        """
        had, failed = len(found), None
        while unread and monotonic() < until:
            job_id = unread.popleft()
            try:
                found[job_id] = _unless_pending(self._read(job_id))
            except Exception as error:  # noqa: BLE001 - as above
                if _is_of_the_result(error):
                    found[job_id] = _unreadable(error)
                else:
                    failed = error  # and the next may be read all the same
        if failed is not None:
            if len(found) == had:
                raise failed
            logger.warning("the result backend did not give a result: %s", type(failed).__name__)


def _unless_pending(stored: StoredResult | None) -> StoredResult | None:
    """Backends that are asked for an unknown job say that it is pending."""
    return None if stored is None or stored.state == PENDING else stored


def _is_of_the_result(error: Exception) -> bool:
    """Whether a backend holds a result and cannot give it. All other errors may be those of a lost connection."""
    return isinstance(error, _UNREADABLE) or (
        # pickle's, of a class that the server does not have
        isinstance(error, AttributeError) and str(error).startswith("Can't get attribute")
    )


def _unreadable(error: Exception) -> StoredResult:
    logger.error("a stored result cannot be decoded: %s", type(error).__name__)
    return UNREADABLE


def _stored(meta: dict[str, Any]) -> StoredResult:
    value = meta["result"]
    if isinstance(value, BaseException):
        value = {"exc_type": type(value).__name__, "exc_message": list(value.args)}
    return StoredResult(str(meta["status"]), value)


class NoResults:
    """Stands for :class:`CeleryResults` where the task store keeps every result itself, and forgets it itself."""

    async def read(self, job_id: str) -> StoredResult | None:  # noqa: ARG002 - there is none
        """No result."""
        return None

    async def read_many(self, job_ids: Sequence[str]) -> Mapping[str, StoredResult | None]:
        """No results."""
        return dict.fromkeys(job_ids)

    async def forget(self, job_ids: Sequence[str]) -> None:
        """Forget nothing."""

    def close(self) -> None:
        """Close nothing."""
