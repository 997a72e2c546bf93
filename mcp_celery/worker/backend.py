"""The result backend as our jobs see it: on the asyncio pool its blocking calls leave the event loop alone.

Celery's tracer stores a job's result from where the job runs, which is the loop's thread there. A backend that takes
long (a Redis that hangs, a database) would stop all jobs. So the call is made in a thread, and only this job's greenlet
waits for it. On every other pool the calls go straight through. And a state that nobody reads is not stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from mcp_celery.worker.aio.current import await_in_job, in_job

_STORING: Final = frozenset({"mark_as_failure", "mark_as_revoked", "store_result"})


class OffLoopBackend:
    """Stands in for a Celery result backend.

    Args:
        backend: The app's.
        on_lost: Called with the request of a job whose result could not be stored. Celery tells nobody of it.
    """

    def __init__(self, backend: Any, on_lost: Callable[[Any], None]) -> None:
        self._backend = backend
        self._on_lost = on_lost

    def mark_as_retry(self, *_: Any, **__: Any) -> None:
        """Store nothing: the record says that the task is tried again.

        Celery publishes a retry before it stores the state RETRY. A retry without delay may have ended by then, and its
        result would be overwritten.
        """

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._backend, name)
        return partial(self._store, found) if name in _STORING else found

    def mark_as_done(self, task_id: str, result: Any, request: Any = None, *rest: Any) -> Any:
        """Store what a job returned. If that fails the task must not stay ``working``, for nobody would look again."""
        try:
            return self._store(self._backend.mark_as_done, task_id, result, request, *rest)
        except Exception:
            self._on_lost(request)
            raise

    @staticmethod
    def _store(store: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if in_job():
            return await_in_job(asyncio.to_thread(store, *args, **options))
        return store(*args, **options)
