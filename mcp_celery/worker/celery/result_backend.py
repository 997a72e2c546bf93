"""The result backend as our jobs see it: it stores a result together with its task's end, and never holds the loop.

Celery's tracer stores a job's result, then its signal lets us move the task. Where both live in one Redis that is one
step (``finish.lua``): cheaper, and no reader sees one without the other. Any other backend is called as it is; on the
asyncio pool in a thread, because a backend that takes long would stop all jobs there, while only this job waits. Celery
has a backend for each thread, since the clients of some must not be shared (memcached's mixes the answers up), so each
of those threads calls its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Literal

from celery import Celery, states
from celery.backends.base import DisabledBackend
from celery.backends.redis import RedisBackend

from mcp_celery.asyncio_pool.current import await_in_job, in_job
from mcp_celery.broker.own_results import OwnResults
from mcp_celery.common.django_connections import fresh_connections
from mcp_celery.common.jsonable import json_text, utf8_text
from mcp_celery.engine import LARGE_RESULT_BYTES, EncodedResult, JobOutcome, ResultSeals
from mcp_celery.errors import JobFailedError
from mcp_celery.logs import get_logger
from mcp_celery.worker.job_arguments import run_of

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
        of_thread: Gives the app's backend of the calling thread.
        finish: Stores a result and moves its task in one step, given the job's request; False if that failed. None
            where the backend is not in the Redis of the records.
        on_lost: Called with the request of a job whose result could not be stored, and the result's bytes; Celery sends
            no signal then.
        seals: Seals what is stored.
    """

    def __init__(
        self,
        of_thread: Callable[[], Any],
        finish: Finish | None,
        on_lost: Callable[[Any, int], None],
        seals: ResultSeals,
    ) -> None:
        self._of_thread = of_thread
        self._backend = of_thread()
        self._finish = finish
        self._on_lost = on_lost
        self._seals = seals

    def mark_as_done(
        self, task_id: str, result: Any, request: Any = None, store_result: bool = True, state: str = "SUCCESS"
    ) -> None:
        """Store what a job returned. If that fails the task must not stay ``working``: no process checks it again."""
        value = self._seals.result(result, run_of(request.kwargs)) if isinstance(result, JobOutcome) else result
        if self._finish is not None and store_result and request is not None and isinstance(result, JobOutcome):
            encoded = self._encoded(task_id, value, request, state)
            if self._finish(request, result, encoded):
                if request.chord:
                    self._call("on_chord_part_return", request, state, value)
                return
        try:
            self._call("mark_as_done", task_id, value, request, store_result, state)
            if isinstance(result, JobOutcome) and store_result and result.size >= LARGE_RESULT_BYTES:
                self._in_thread(self._require_stored, task_id, state)
        except Exception:
            self._on_lost(request, result.size if isinstance(result, JobOutcome) else 0)
            raise

    @staticmethod
    def _require_stored(backend: Any, task_id: str, state: str) -> None:
        """Read a large result back: memcached refuses one without an error, and a database may cut it off.

        Raises:
            ResultNotStoredError: The backend does not have it.
        """
        if isinstance(backend, RedisBackend | OwnResults):
            return  # it holds 512 MB, and answers with an error where it does not
        try:
            found = backend.get_task_meta(task_id, cache=False)["status"]
        except Exception as error:
            raise ResultNotStoredError(type(backend).__name__) from error
        if found != state:
            raise ResultNotStoredError(type(backend).__name__)

    def mark_as_failure(
        self, task_id: str, exc: BaseException, traceback: Any = None, request: Any = None, *args: Any, **options: Any
    ) -> None:
        """Store how a job failed. Where that fails it is logged: the record, which is what clients see, learns of the
        failure by Celery's signal.
        """
        try:
            if isinstance(exc, JobFailedError):
                exc = self._seals.error(exc, run_of(request.kwargs))
            if isinstance(traceback, str):
                # PostgreSQL keeps no NUL in a text, and no driver encodes a lone surrogate.
                traceback = utf8_text(traceback).replace("\x00", "\\x00")
            self._call("mark_as_failure", task_id, exc, traceback, request, *args, **options)
        except Exception as error:  # noqa: BLE001 - backends raise their drivers' own errors
            logger.warning("the result backend did not take the failure of job %s: %s", task_id, type(error).__name__)

    def _encoded(self, task_id: str, value: Any, request: Any, state: str) -> EncodedResult:
        """The value that Celery's Redis backend would store, and its key."""
        backend = self._backend
        meta = backend._get_result_meta(result=value, state=state, traceback=None, request=request)
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
        return partial(self._call, name) if name in _STORING else getattr(self._backend, name)

    def _call(self, method: str, *args: Any, **options: Any) -> Any:
        """Call a method of the backend."""

        def call(backend: Any) -> Any:
            return getattr(backend, method)(*args, **options)

        return self._in_thread(call)

    def _in_thread(self, work: Callable[..., Any], *args: Any) -> Any:
        """Do something with the backend; on the asyncio pool in a thread, with that thread's own."""
        if not in_job():
            return work(self._backend, *args)

        def work_with_own() -> Any:
            # All threads may share connections of redis-py.
            backend = self._backend if isinstance(self._backend, RedisBackend | OwnResults) else self._of_thread()
            with fresh_connections(backend):
                return work(backend, *args)

        return await_in_job(asyncio.to_thread(work_with_own))


class StoreBackend(DisabledBackend):
    """Stands in for a Celery result backend where the store of the tasks keeps results itself.

    How a job fails is in the record, so nothing else is kept of it.

    Args:
        app: The Celery app.
        finish: Stores a result and moves its task in one step, given the job's request.
        seals: Seals what is stored.
    """

    def __init__(self, app: Celery, finish: Finish, seals: ResultSeals) -> None:
        super().__init__(app)
        self._finish = finish
        self._seals = seals

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
            value = self._seals.result(result, run_of(request.kwargs))
            self._finish(request, result, EncodedResult(task_id, json_text([state, value])))
