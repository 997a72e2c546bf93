"""One delivery of a Celery task, from its arrival at the pool to its end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol, TypeVar, cast

from billiard.exceptions import SoftTimeLimitExceeded
from celery.exceptions import Ignore
from celery.worker.request import Request

from mcp_celery.asyncio_pool.current import Cleanup, await_in_job

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Verdict(Enum):
    """Why a job is ended from outside, which decides what its request still has to be notified of."""

    TERMINATED = auto()
    """Celery revoked or cancelled it: the request is notified when it has ended."""
    TIMED_OUT = auto()
    """It ran into its hard time limit: the request was notified at once."""
    DROPPED = auto()
    """The worker ends or has lost its broker: nothing is reported, and the message is delivered again."""


class SoftLimit(SoftTimeLimitExceeded, asyncio.CancelledError):
    """The exception that a coroutine gets at its ``await`` when its soft time limit has passed.

    Code that waits for others (``TaskGroup``, ``wait_for``, anyio) expects nothing but a cancellation there, and cleans
    up on nothing else: a bare ``SoftTimeLimitExceeded`` would leave its children running. So it is both. Outside the
    body it is Celery's own class again; in a log and in a pickle it always is.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as Celery's own class."""
        return SoftTimeLimitExceeded, self.args


SoftLimit.__name__ = SoftLimit.__qualname__ = SoftTimeLimitExceeded.__name__


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
        """Raise ``SoftTimeLimitExceeded`` in the body, as it begins if it has not. Called on the loop's thread."""
        ...

    def enter_body(self) -> None:
        """From here on a soft limit may be raised, at once where it has passed already."""
        ...

    def leave_body(self) -> None:
        """From here on none is raised. May be called again."""
        ...


def _nothing(*_: Any) -> None:
    """Stand in for a callback that was not given."""


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Celery's callbacks for a job, under the names that Celery gives them."""

    callback: Callable[..., Any] = _nothing
    """Called with what the work returned."""
    accept_callback: Callable[..., Any] = _nothing
    """Called with a process id and a time when the job begins."""
    timeout_callback: Callable[..., Any] = _nothing
    """Called with ``(soft, seconds)`` when a limit has passed."""
    error_callback: Callable[..., Any] = _nothing
    """Called with an ``ExceptionInfo``."""

    def request(self) -> Request | None:
        """The request behind them, whose bound methods they are. It alone knows whether it is still wanted."""
        owner = getattr(self.accept_callback, "__self__", None)
        return owner if isinstance(owner, Request) else None


_NO_CALLBACKS = Callbacks()


class Job:
    """One delivery.

    Args:
        work: Runs Celery's tracer, and returns what its ``callback`` is to be given.
        job_id: Celery's id.
        name: Name of the Celery task.
        on_loop: Whether it runs on the event loop.
        tell: Celery's callbacks for it.
        soft_seconds, hard_seconds: Time limits, None or 0 for none.
    """

    __slots__ = (
        "__weakref__",
        "_at_stop",
        "_begun",
        "_condemned_at",
        "_terminate",
        "begun",
        "done",
        "hard_seconds",
        "id",
        "name",
        "on_loop",
        "signal",
        "soft_seconds",
        "strand",
        "tell",
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
        tell: Callbacks = _NO_CALLBACKS,
        soft_seconds: float | None = None,
        hard_seconds: float | None = None,
    ) -> None:
        self.work = work
        self.id = job_id
        self.name = name
        self.on_loop = on_loop
        self.tell = tell
        self.soft_seconds = soft_seconds
        self.hard_seconds = hard_seconds
        self.strand: Strand | None = None
        self.timers: list[asyncio.TimerHandle] = []
        self.verdict: Verdict | None = None
        self.signal: int | None = None
        self.begun = False
        self.done = False
        self._condemned_at = 0.0
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
        self._condemned_at = time.monotonic()

    def unwinds_since(self) -> float:
        """For how many seconds a job has run on after it was ended."""
        return time.monotonic() - self._condemned_at

    def forget(self) -> None:
        """Let go of the message and the request: contexts that were copied from the job's may outlive it."""
        self.work = self._terminate = _nothing
        self.tell = _NO_CALLBACKS
        self.strand = None
        self.timers = []
        self._begun = []

    def can_wait(self) -> bool:
        """Whether the calling code runs on the job's strand."""
        return self.strand is not None and self.strand.can_wait()

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Suspend the job, which :meth:`can_wait`, until a coroutine has ended."""
        return cast(Strand, self.strand).wait(coroutine)

    def at_stop(self, cleanup: Cleanup) -> None:
        """Run a clean-up on the event loop, after the pool's last job."""
        self._at_stop(cleanup)

    def begins(self, request: Any) -> bool:
        """Whether a call of a task's body is the tracer's own. Said once for each request.

        Code in a job may call other tasks, or its own again, like functions; that gets what the function returns.

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
            concurrent.futures.CancelledError: The body was cancelled, and not by Celery. An ``Exception``, so that
                Celery treats it like any other.
        """
        try:
            value = self._call(body, args, kwargs)
        except SoftLimit as error:
            raise SoftTimeLimitExceeded(*error.args).with_traceback(error.__traceback__) from None
        except asyncio.CancelledError as error:
            if self.verdict is None:
                raise concurrent.futures.CancelledError(f"{self} was cancelled from inside") from error
            raise
        except Exception as error:
            if self.verdict is not None:
                if not isinstance(error, Ignore):
                    logger.warning("%s raised while it was ended: %r", str(self), error, exc_info=True)
                raise asyncio.CancelledError from error
            raise
        if self.verdict is not None:
            raise asyncio.CancelledError
        return value

    def _call(self, body: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        strand = cast(Strand, self.strand)
        if len(self._begun) > 1:  # another task's body, which this one's applies eagerly
            return _awaited(body(*args, **kwargs))
        try:
            strand.enter_body()
            if self.verdict is not None:  # an interruption before this found no body to interrupt
                raise asyncio.CancelledError
            return _awaited(body(*args, **kwargs))
        finally:
            # In a thread an exception from outside may hit the first call, but not the second as well.
            try:
                strand.leave_body()
            finally:
                strand.leave_body()


def _awaited(value: Any) -> Any:
    return await_in_job(value) if inspect.isawaitable(value) else value
