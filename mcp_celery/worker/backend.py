"""The result backend as our jobs see it: it stores a result together with its task's end, and never holds the loop.

Celery's tracer stores a job's result, then its signal lets us move the task. Where both live in one Redis that is one
step (``finish.lua``): cheaper, and nobody sees the one without the other. Any other backend is called as it is; on the
asyncio pool in a thread, because a backend that takes long would stop all jobs there, while only this job waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Literal

from celery import Celery, states
from celery.backends.base import DisabledBackend
from celery.backends.redis import RedisBackend

from mcp_celery.engine import LARGE_RESULT_BYTES, EncodedResult, JobOutcome
from mcp_celery.jsonable import json_text
from mcp_celery.logs import get_logger
from mcp_celery.worker.aio.current import await_in_job, in_job

_STORING: Final = frozenset({"store_result"})

logger = get_logger(__name__)

Finish = Callable[[Any, JobOutcome, EncodedResult], bool]
ResultPlace = Literal["elsewhere", "with records", "in store"]
"""Where results of jobs are kept: in a result backend elsewhere, in one that is the database of the records, or by the
store itself, which then uses no result backend.
"""


class ResultNotStoredError(Exception):
    """A result backend accepted a result and does not have it.

    Args:
        backend: Name of its class.
    """

    def __init__(self, backend: str) -> None:
        super().__init__(f"{backend} accepted a result and does not have it: it is larger than the backend can hold")


class JobBackend:
    """Stands in for a Celery result backend.

    Args:
        backend: The app's.
        finish: Stores a result and moves its task in one step, given the job's request; False if that failed. None
            where the backend is not in the Redis of the records.
        on_lost: Called with the request of a job whose result could not be stored, and the result's bytes; Celery sends
            no signal then.
    """

    def __init__(self, backend: Any, finish: Finish | None, on_lost: Callable[[Any, int], None]) -> None:
        self._backend = backend
        self._finish = finish
        self._on_lost = on_lost

    def mark_as_done(
        self, task_id: str, result: Any, request: Any = None, store_result: bool = True, state: str = "SUCCESS"
    ) -> None:
        """Store what a job returned. If that fails the task must not stay ``working``, for nobody would look again."""
        if self._finish is not None and store_result and request is not None and isinstance(result, JobOutcome):
            encoded = self._encoded(task_id, result, request, state)
            if self._finish(request, result, encoded):
                if request.chord:
                    self._store(self._backend.on_chord_part_return, request, state, result)
                return
        plain = _plain(result)
        try:
            self._store(self._backend.mark_as_done, task_id, plain, request, store_result, state)
            if isinstance(result, JobOutcome) and store_result and result.size >= LARGE_RESULT_BYTES:
                self._store(self._require_stored, task_id, state)
        except Exception:
            self._on_lost(request, result.size if isinstance(result, JobOutcome) else 0)
            raise

    def _require_stored(self, task_id: str, state: str) -> None:
        """Read a large result back: memcached refuses one without an error, and a database may cut it off.

        Raises:
            ResultNotStoredError: The backend does not have it.
        """
        backend = self._backend
        if isinstance(backend, RedisBackend):
            return  # it holds 512 MB, and answers with an error where it does not
        try:
            found = backend.get_task_meta(task_id, cache=False)["status"]
        except Exception as error:
            raise ResultNotStoredError(type(backend).__name__) from error
        if found != state:
            raise ResultNotStoredError(type(backend).__name__)

    def mark_as_failure(self, task_id: str, exc: BaseException, *args: Any, **options: Any) -> None:
        """Store how a job failed. Where that fails it is logged: the record, which is what clients see, learns of the
        failure by Celery's signal.
        """
        try:
            self._store(self._backend.mark_as_failure, task_id, exc, *args, **options)
        except Exception as error:  # noqa: BLE001 - backends raise their drivers' own errors
            logger.warning("the result backend did not take the failure of job %s: %s", task_id, type(error).__name__)

    def _encoded(self, task_id: str, result: JobOutcome, request: Any, state: str) -> EncodedResult:
        """What Celery's Redis backend would store, and where."""
        backend = self._backend
        meta = backend._get_result_meta(result=_plain(result), state=state, traceback=None, request=request)
        key = backend.get_key_for_task(task_id)
        return EncodedResult(
            key.decode() if isinstance(key, bytes) else key, backend.encode({**meta, "task_id": task_id})
        )

    def mark_as_retry(self, *_: Any, **__: Any) -> None:
        """Store nothing: the record says that the task is tried again.

        Celery publishes a retry before it stores the state RETRY. A retry without delay may have ended by then, and its
        result would be overwritten.
        """

    def mark_as_revoked(self, *_: Any, **__: Any) -> None:
        """Store nothing: the record says so, if it is so. A message that is delivered again while its job runs may be
        revoked for having expired, which must not stand where the job's result will.
        """

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._backend, name)
        return partial(self._store, found) if name in _STORING else found

    @staticmethod
    def _store(store: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if in_job():
            return await_in_job(asyncio.to_thread(store, *args, **options))
        return store(*args, **options)


class StoreBackend(DisabledBackend):
    """Stands in for a Celery result backend where the store of the tasks keeps results itself.

    How a job fails is in the record, so nothing else is kept of it.

    Args:
        app: The Celery app.
        finish: Stores a result and moves its task in one step, given the job's request.
    """

    def __init__(self, app: Celery, finish: Finish) -> None:
        super().__init__(app)
        self._finish = finish

    def mark_as_done(
        self,
        task_id: str,
        result: Any,
        request: Any = None,
        store_result: bool = True,  # noqa: ARG002 - Celery's signature; results of tasks are always stored
        state: str = states.SUCCESS,
    ) -> None:
        """Store what a job returned."""
        if request is not None and isinstance(result, JobOutcome):
            self._finish(request, result, EncodedResult(task_id, json_text([state, result.__json__()])))


def _plain(result: Any) -> Any:
    """A result that every serializer knows, for a host's may be any."""
    return result.__json__() if isinstance(result, JobOutcome) else result
