"""Which job the running code belongs to, and how sync code inside a job waits for an awaitable.

A job's code runs in its greenlet, in asyncio tasks that it starts, and in threads that it hands work to
(``asyncio.to_thread``). Neither the greenlet nor the thread shows whose code it is, but all of them have copied the
job's context: so a context variable does.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
Cleanup = Callable[[], Awaitable[object]]


class CurrentJob(Protocol):
    """The state of a job that code inside it may read."""

    id: str
    """Celery's id."""
    name: str
    """Name of the Celery task."""

    @property
    def on_loop(self) -> bool:
        """Whether it runs on the event loop; False for a job in a thread."""
        ...

    def can_wait(self) -> bool:
        """Whether the calling code runs where the job can be suspended: its greenlet or its thread."""
        ...

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Suspend the job until a coroutine has ended."""
        ...

    def at_stop(self, cleanup: Cleanup) -> None:
        """Run a clean-up on the event loop, after the pool's last job."""
        ...


_current: ContextVar[CurrentJob | None] = ContextVar("asyncio_pool_job", default=None)


def set_current_job(job: CurrentJob) -> None:
    """Make a job the current one of this context and of all that are copied from it."""
    _current.set(job)


def current_job() -> CurrentJob | None:
    """The job that the calling code belongs to; also in asyncio tasks and threads that the job has started.

    Returns:
        None outside a job of this pool.
    """
    return _current.get()


def in_job() -> bool:
    """Whether :func:`await_in_job` can be called here.

    Returns:
        True in a job's body and in all that Celery calls around it: signal handlers (``task_prerun``,
        ``task_success``, …), the result backend, ``on_failure`` and its like. False outside a job, in asyncio tasks
        that a job has started (they can ``await``), and in threads that it has handed work to (they can block).
    """
    job = _current.get()
    return job is not None and job.can_wait()


def await_in_job(awaitable: Awaitable[T]) -> T:
    """Wait for an awaitable in sync code, while all other jobs go on.

    It is awaited inside the job: it has the job's context variables, and the job's end interrupts it.

    Args:
        awaitable: Anything that could stand behind ``await``.

    Returns:
        Its result.

    Raises:
        RuntimeError: The calling code cannot be suspended: see :func:`in_job`.
        BaseException: Whatever the awaitable raises.
    """
    job = _current.get()
    if job is None or not job.can_wait():
        if inspect.iscoroutine(awaitable):
            awaitable.close()  # it is not awaited, and need not say so as well
        where = "outside a job of the asyncio pool" if job is None else f"beside job {job.id}, not in its own greenlet"
        raise RuntimeError(
            f"await_in_job() was called {where}: ask in_job() first, and use `await` or blocking code instead"
        )
    return job.wait(awaitable if inspect.iscoroutine(awaitable) else _as_coroutine(awaitable))


def at_pool_stop(cleanup: Cleanup) -> None:
    """Close what jobs have opened on the event loop: a client session, a connection pool.

    Args:
        cleanup: Called without arguments and awaited on the event loop, after the last job and before the loop is
            closed; the last one given is called first. Each has a few seconds.

    Raises:
        RuntimeError: The calling code belongs to no job of the asyncio pool.
    """
    job = _current.get()
    if job is None:
        raise RuntimeError("at_pool_stop() was called outside a job of the asyncio pool, which has no loop to close")
    job.at_stop(cleanup)


async def _as_coroutine(awaitable: Awaitable[T]) -> T:
    return await awaitable
