"""A job on the event loop: Celery's sync tracer runs in a greenlet, and coroutines are driven inside it.

Only the bare futures on which a coroutine waits cross to the loop's own greenlet, where asyncio sees an ordinary task
that awaits them::

    asyncio task ──▶ LoopStrand.run ══ switch ══▶ greenlet: tracer ▶ body ▶ drive() ▶ coroutine
                            ▲                                                             │
                            └───────────── the future that the coroutine waits for ◀──────┘

So the tracer and the signal handlers can be suspended anywhere, and greenlet-local state is right throughout.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar, cast

from greenlet import getcurrent, greenlet

from mcp_celery.asyncio_pool.job import Job, SoftLimit

T = TypeVar("T")


def drive(coroutine: Coroutine[Any, Any, T], suspend: Callable[[Any], Any]) -> T:
    """Run a coroutine to its end in the calling greenlet.

    Args:
        coroutine: Not started yet.
        suspend: Given what the coroutine yields; returns when it may go on, or raises what the coroutine is to get.
    """
    error: BaseException | None = None
    while True:
        try:
            waits_for = coroutine.send(None) if error is None else coroutine.throw(error)
        except StopIteration as end:
            return end.value
        finally:
            error = None  # this frame is in its traceback
        try:
            suspend(waits_for)
        except BaseException as raised:  # noqa: BLE001 - all of it belongs to the coroutine
            error = raised


class LoopStrand:
    """A job's greenlet and its asyncio task.

    Args:
        job: The job.
        busy_with: Told before and after each stretch for which the job holds the loop's thread.
    """

    __slots__ = ("_busy_with", "_greenlet", "_in_body", "_job", "_over", "_soft_is_due", "_task")

    def __init__(self, job: Job, busy_with: Callable[[Job | None], None]) -> None:
        self._job = job
        self._busy_with = busy_with
        self._task: asyncio.Task[Any] | None = None
        self._greenlet: greenlet | None = None
        self._in_body = False
        self._over = False
        self._soft_is_due = False

    async def run(self, work: Callable[[], T]) -> T:
        """Run the tracer in a greenlet of its own. This is the inside of the job's asyncio task."""
        self._task = asyncio.current_task()
        self._greenlet = greenlet(work)
        # One context for both sides: what the body sets is there when the task is resumed, and the other way round.
        self._greenlet.gr_context = getcurrent().gr_context
        return await self._relay(self._greenlet)

    @types.coroutine
    def _relay(self, job: greenlet) -> Generator[Any, Any, Any]:
        resume: Callable[[Any], Any] = job.switch
        message: Any = None
        begun = False
        while True:
            self._busy_with(self._job)
            try:
                # The function itself takes no argument; later ones are what `suspend` returns or raises.
                out = resume(message) if begun else job.switch()
            finally:
                self._busy_with(None)
                message = None
            if job.dead:
                return out
            begun = True
            try:
                message = yield out
                resume = job.switch
            except GeneratorExit:
                raise
            except BaseException as error:  # noqa: BLE001 - all of it belongs to the job
                message = self._translate(error)
                resume = job.throw

    def _translate(self, error: BaseException) -> BaseException:
        """A cancellation that stands for the soft limit."""
        if not (self._soft_is_due and isinstance(error, asyncio.CancelledError) and self._job.verdict is None):
            return error
        self._soft_is_due = False
        cast("asyncio.Task[Any]", self._task).uncancel()
        return SoftLimit()

    def can_wait(self) -> bool:
        """Whether the calling code runs in the job's greenlet, as the job's asyncio task.

        A task that is started eagerly takes its first steps inside the greenlet of the one that starts it.
        """
        return getcurrent() is self._greenlet and asyncio.current_task() is self._task

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Drive a coroutine; the greenlet waits whenever it does."""
        return drive(coroutine, cast(greenlet, getcurrent().parent).switch)

    def interrupt(self, reason: str) -> None:
        """Cancel the asyncio task. One that has not begun looks at its job's verdict by itself."""
        if self._task is not None:
            self._task.cancel(reason)

    def soften(self) -> None:
        """Cancel the asyncio task, and have the body get its limit's exception instead."""
        if not self._over:
            self._soft_is_due = True
            if self._in_body and self._task is not None:
                self._task.cancel()

    def enter_body(self) -> None:
        """From here on a soft limit may be raised, at once where it has passed already."""
        self._in_body = True
        if self._soft_is_due:
            self._soft_is_due = False
            raise SoftLimit

    def leave_body(self) -> None:
        """From here on none is raised."""
        self._in_body = False
        self._over = True
