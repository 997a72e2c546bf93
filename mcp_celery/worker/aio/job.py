"""One delivery of a Celery task, from its arrival at the pool to its end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from enum import Enum, auto
from typing import Any, Protocol, TypeVar

from billiard.exceptions import SoftTimeLimitExceeded
from celery.worker.request import Request

from mcp_celery.worker.aio.current import Cleanup, await_in_job

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Verdict(Enum):
    """Why a job is ended from outside, which settles what its request is still to be told."""

    TERMINATED = auto()
    """Celery revoked or cancelled it: the request is told when it has ended."""
    TIMED_OUT = auto()
    """It ran into its hard time limit: the request has been told at once."""
    DROPPED = auto()
    """The worker ends or has lost its broker: nothing is told, and the message is delivered again."""


class SoftLimit(SoftTimeLimitExceeded, asyncio.CancelledError):
    """What a coroutine gets at its ``await`` when its soft time limit has passed.

    Code that waits for others (``TaskGroup``, ``wait_for``, anyio) expects nothing but a cancellation there, and cleans up
    on nothing else: a bare ``SoftTimeLimitExceeded`` would leave its children running. So it is both. Outside the body it
    is Celery's own class again.
    """


class Strand(Protocol):
    """Where a job runs: a greenlet on the event loop, or a thread."""

    def can_wait(self) -> bool:
        """Whether the calling code runs on this strand."""
        ...

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Suspend the strand until a coroutine has ended."""
        ...

    def interrupt(self, reason: str) -> None:
        """Raise ``CancelledError`` in the job. Called on the loop's thread."""
        ...

    def soften(self) -> None:
        """Raise ``SoftTimeLimitExceeded`` in the body: as it begins, if it has not; never after it. On the loop's thread."""
        ...

    def enter_body(self) -> None:
        """From here on a soft limit may be raised."""
        ...

    def leave_body(self) -> None:
        """From here on none is raised."""
        ...


def _nothing(*_: Any) -> None:
    """Stand in for a callback that was not given."""


class Job:
    """One delivery.

    Args:
        work: Runs Celery's tracer, and returns what its ``callback`` is to be given.
        job_id: Celery's id.
        name: Name of the Celery task.
        on_loop: Whether it runs on the event loop.
        callback, accept_callback, timeout_callback, error_callback: As Celery hands them to a pool.
        soft_timeout, timeout: Limits in seconds, None or 0 for none.
    """

    __slots__ = (
        "__weakref__",
        "_at_stop",
        "_begun",
        "_terminate",
        "accepted",
        "begun",
        "condemned_at",
        "done",
        "failed",
        "hard_seconds",
        "id",
        "name",
        "on_loop",
        "request",
        "signal",
        "soft_seconds",
        "strand",
        "succeeded",
        "timed_out",
        "timers",
        "verdict",
        "work",
    )

    def __init__(
        self,
        work: Callable[[], Any],
        *,
        job_id: str,
        name: str,
        on_loop: bool,
        callback: Callable[..., Any] | None = None,
        accept_callback: Callable[..., Any] | None = None,
        timeout_callback: Callable[..., Any] | None = None,
        error_callback: Callable[..., Any] | None = None,
        soft_timeout: float | None = None,
        timeout: float | None = None,
    ) -> None:
        self.work = work
        self.id = job_id
        self.name = name
        self.on_loop = on_loop
        self.succeeded = callback or _nothing
        self.accepted = accept_callback or _nothing
        self.timed_out = timeout_callback or _nothing
        self.failed = error_callback or _nothing
        self.soft_seconds = soft_timeout or None
        self.hard_seconds = timeout or None
        # Celery's callbacks are bound methods of the request, which alone can tell whether it was revoked meanwhile.
        owner = getattr(accept_callback, "__self__", None)
        self.request: Request | None = owner if isinstance(owner, Request) else None
        self.strand: Strand | None = None
        self.timers: list[asyncio.TimerHandle] = []
        self.verdict: Verdict | None = None
        self.condemned_at = 0.0
        self.signal: int | None = None
        self.begun = False
        self.done = False
        self._begun: list[Any] = []
        self._terminate: Callable[[Job], None] = _nothing
        self._at_stop: Callable[[Cleanup], None] = _nothing

    def __str__(self) -> str:
        """As Celery names it in its own log lines."""
        return f"{self.name}[{self.id}]"

    def joins(self, *, terminate: Callable[[Job], None], at_stop: Callable[[Cleanup], None]) -> None:
        """Belong to a pool, which ends it on demand and cleans up after all."""
        self._terminate = terminate
        self._at_stop = at_stop

    def terminate(self, signal: int | None = None) -> None:
        """End the job. Celery calls this on what ``apply_async`` returned, after ``revoke(terminate=True)``.

        Args:
            signal: Number of the signal that a process would get; here it only goes into the record.
        """
        self.signal = signal
        self._terminate(self)

    def condemn(self, verdict: Verdict) -> None:
        """Settle how the job ends, whatever its body does from now on."""
        self.verdict = verdict
        self.condemned_at = time.monotonic()

    def unwinds_since(self) -> float:
        """For how many seconds a condemned job has gone on."""
        return time.monotonic() - self.condemned_at

    def forget(self) -> None:
        """Let go of the message and the request; contexts copied from the job's may live on and keep the job."""
        self.work = self.accepted = self.succeeded = self.failed = self.timed_out = _nothing
        self.request = self.strand = None
        self.timers = []
        self._begun = []
        self._terminate = _nothing

    def can_wait(self) -> bool:
        """Whether the calling code runs on the job's strand."""
        return self.strand is not None and self.strand.can_wait()

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Suspend the job until a coroutine has ended."""
        assert self.strand is not None, "a job that has ended cannot wait"
        return self.strand.wait(coroutine)

    def at_stop(self, cleanup: Cleanup) -> None:
        """Run a clean-up on the event loop, after the pool's last job."""
        self._at_stop(cleanup)

    def begins(self, request: Any) -> bool:
        """Whether a call of a task's body is the tracer's own. Said once for each request.

        Code in a job may call other tasks, or its own again, like functions; such a call gets what the function returns.

        Args:
            request: Topmost request (``celery.app.task.Context``) of the called task's stack.
        """
        if request is None or request.called_directly or request in self._begun:
            return False
        self._begun.append(request)
        return True

    def run_body(self, body: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call a task's body for the tracer, and await what it returns if that can be awaited.

        Raises:
            SoftTimeLimitExceeded: The soft limit has passed, and the body let the exception through.
            asyncio.CancelledError: The job is to be ended. Whatever the body returned or raised instead of it does not
                count: Celery has recorded the end already.
            concurrent.futures.CancelledError: The body was cancelled, and not by Celery; an ``Exception``, so that Celery
                treats it like any other.
        """
        strand = self.strand
        assert strand is not None, "a body runs in a job that has begun"
        try:
            try:
                strand.enter_body()
                value = body(*args, **kwargs)
                if inspect.isawaitable(value):
                    value = await_in_job(value)
            finally:
                strand.leave_body()
        except SoftLimit as error:
            raise SoftTimeLimitExceeded(*error.args).with_traceback(error.__traceback__) from None
        except asyncio.CancelledError as error:
            if self.verdict is None:
                raise concurrent.futures.CancelledError(f"{self} was cancelled from inside") from error
            raise
        except Exception as error:
            if self.verdict is not None:
                logger.warning("%s raised while it was ended: %r", self, error, exc_info=True)
                raise asyncio.CancelledError from error
            raise
        if self.verdict is not None:
            raise asyncio.CancelledError
        return value
