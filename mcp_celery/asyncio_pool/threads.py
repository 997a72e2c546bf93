"""A job in a thread: how sync bodies run, so that none of them keeps the loop from the others.

The whole job runs there, as on Celery's ``threads`` pool: signal handlers, the result backend and ``on_failure`` find
the thread-local state (database connections, scoped sessions) of the body that they belong to.
"""

from __future__ import annotations

import asyncio
import ctypes
import queue
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from billiard.exceptions import SoftTimeLimitExceeded

from mcp_celery.asyncio_pool.awaited import Awaited

T = TypeVar("T")

raise_in_thread: Final = ctypes.pythonapi.PyThreadState_SetAsyncExc
raise_in_thread.argtypes = (ctypes.c_ulong, ctypes.py_object)


class _Over(BaseException):
    """Stands in for an exception that is not to be raised any more."""


class DaemonThreads:
    """Threads that are made when needed, used again, and do not keep a process alive that wants to end.

    ``ThreadPoolExecutor`` does keep it alive: a body that never returns would have to be killed with its worker. How
    many there are is the roster's business.

    Args:
        name: What the threads are called.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._idle = 0
        self._made = 0
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def run(self, work: Callable[[], None]) -> None:
        """Run a function, which raises nothing, in a thread."""
        with self._lock:
            if self._idle:
                self._idle -= 1
            else:
                self._made += 1
                threading.Thread(target=self._main, name=f"{self._name}-{self._made}", daemon=True).start()
            self._work.put(work)

    def stop(self) -> None:
        """Let the idle threads end, and the busy ones when they are done."""
        for _ in range(self._made):
            self._work.put(None)

    def _main(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            del work
            with self._lock:
                self._idle += 1


class ThreadStrand:
    """The thread of a job, and the exceptions that are raised in it from outside.

    Python can raise an exception in another thread, between two instructions: blocking calls are not interrupted, the
    exception waits for their end. It is raised in the body alone, never in Celery's code around it.

    Args:
        loop: Where awaitables run for which the thread waits.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._thread = threading.get_ident()
        self._in_body = False
        self._over = False
        self._soft_is_due = False
        self._is_interrupted = False
        self._awaited: Awaited[Any] | None = None
        self._reason: type[BaseException] | None = None
        """What is raised in the body when the coroutine for which it waits has ended."""

    def can_wait(self) -> bool:
        """Whether the calling code runs in the job's thread."""
        return threading.get_ident() == self._thread

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Block the thread until a coroutine has ended on the loop."""
        awaited = Awaited(coroutine, self._loop)
        try:
            with self._lock:
                self._awaited = awaited
            return awaited.result()
        except BaseException:
            awaited.cancel()
            raise
        finally:
            with self._lock:
                self._awaited = None
                reason, self._reason = self._reason, None
            if reason is not None:
                raise reason

    def interrupt(self, reason: str) -> None:  # noqa: ARG002 - an exception is made by the thread, from its class alone
        """Raise ``CancelledError`` in the body."""
        self._raise(asyncio.CancelledError)

    def soften(self) -> None:
        """Raise ``SoftTimeLimitExceeded`` in the body, as it begins if it has not."""
        with self._lock:
            in_body = self._in_body
            self._soft_is_due = not in_body and not self._over
        if in_body:
            self._raise(SoftTimeLimitExceeded)

    def enter_body(self) -> None:
        """From here on exceptions may be raised, a soft limit's at once where it has passed already."""
        with self._lock:
            self._in_body = True
            soft_is_due, self._soft_is_due = self._soft_is_due, False
        if soft_is_due:
            raise SoftTimeLimitExceeded

    def leave_body(self) -> None:
        """From here on none is raised, and one that comes this moment is forgotten."""
        while True:
            try:
                with self._lock:
                    self._in_body = False
                    self._over = True
                if not self._is_interrupted:
                    return
                # It takes the place of one that has not been raised yet. To take that one back (NULL) would be
                # simpler, but then CPython 3.11 and 3.12 look for it for ever, in all threads: each call of a function
                # takes longer, and with a trace function (a debugger, coverage) 3.11 comes to no end of a call.
                raise_in_thread(self._thread, _Over)
                while True:
                    time.sleep(0)
            except _Over:
                return
            except (asyncio.CancelledError, SoftTimeLimitExceeded):
                continue

    def _raise(self, error: type[BaseException]) -> None:
        with self._lock:
            awaited = self._awaited
            if self._in_body and awaited is not None:
                # It is blocked until the coroutine has ended. An exception on its way to it meanwhile would slow all
                # threads down, and under a trace function stop them: see `leave_body`.
                self._reason = error
            elif self._in_body:
                self._is_interrupted = True
                raise_in_thread(self._thread, error)
        if awaited is not None:
            awaited.cancel()
