"""The event loop of jobs: one for each worker process, on a thread of its own, made when the first job needs it.

Celery calls a job's body in the pool's thread (prefork's child, a thread of ``threads``, the main thread of ``solo``).
The body hands its coroutine to this loop and waits. So ``async def`` tools of many threads share a loop, the server's
lifespan lives between jobs, and an exception that Celery raises in the waiting thread (a soft time limit) reaches the
coroutine as a cancellation.

Jobs in a server's own process may have to run on the server's loop: what its lifespan opened belongs to that loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterable
from concurrent.futures import TimeoutError as WaitTimeoutError
from typing import Any, TypeVar, cast

from mcp_celery.asyncio_pool.awaited import Awaited
from mcp_celery.asyncio_pool.threads import raise_in_thread
from mcp_celery.base_exceptions import log_raised

logger = logging.getLogger(__name__)

T = TypeVar("T")

UNWIND_SECONDS = 5.0
"""How long an interrupted coroutine may take for its ``finally`` blocks."""


class CancelledInsideError(Exception):
    """User code cancelled the asyncio task that runs its job."""


class JobLoop(ABC):
    """Runs coroutines for blocking callers."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending = False
        self._asked_at: float | None = None

    def held_seconds(self) -> float:
        """For how long the loop has not run since a check was requested; 0 where it has, or there is no loop.

        Each call asks the loop, unless it still has to answer. To be called from one thread, again and again.
        """
        loop, asked_at = self._loop, self._asked_at
        if loop is None:
            return 0.0
        if asked_at is not None:
            return time.monotonic() - asked_at
        self._asked_at = time.monotonic()
        try:
            loop.call_soon_threadsafe(self._answer)
        except RuntimeError:  # closed
            self._asked_at = None
        return 0.0

    def _answer(self) -> None:
        self._asked_at = None

    def is_here(self) -> bool:
        """Whether this is the running loop."""
        return self._loop is asyncio.get_running_loop()

    @abstractmethod
    def _running(self) -> asyncio.AbstractEventLoop:
        """The loop, running."""

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and wait for it.

        Args:
            coroutine: Started at once.

        Returns:
            Its result.

        Raises:
            CancelledInsideError: The coroutine was cancelled, and not from here.
            BaseException: What the coroutine raises, or what was raised in the waiting thread meanwhile; the coroutine
                is then cancelled, and its ``finally`` blocks have run.
        """
        call = Awaited(coroutine, self._running())
        try:
            return call.result()
        except asyncio.CancelledError:
            if self._ending:
                raise  # `stop` cancelled it: the job is a lost worker's
            # An `Exception`, so that Celery treats it like any other and the thread goes on to the next job.
            raise CancelledInsideError("the component cancelled the asyncio task of its job") from None
        except SystemExit:  # prefork's child is asked to end (SIGTERM, as Celery's terminate sends it)
            _unwind(call)
            interrupt_threads()
            raise
        except BaseException:
            _unwind(call)
            raise

    @abstractmethod
    def stop(self, *last: Coroutine[Any, Any, None]) -> None:
        """Run the last coroutines, and let the loop go. Must not be called on the loop itself."""


class ServerLoop(JobLoop):
    """The event loop of a server that runs jobs itself. It belongs to the code that runs the server.

    Args:
        loop: The loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = self._server_loop = loop

    def _running(self) -> asyncio.AbstractEventLoop:
        return self._server_loop

    def stop(self, *last: Coroutine[Any, Any, None]) -> None:
        """Run the last coroutines; the loop goes on."""
        self._ending = True
        _run_last(last, self._server_loop)


class ProcessLoop(JobLoop):
    """A loop of the process's own. Safe across forks: a child never uses its parent's loop."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._loop = self._thread = self._asked_at = None
        self._stopping = threading.Event()
        self._ending = False

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                loop = asyncio.new_event_loop()
                thread = threading.Thread(
                    target=self._main, args=(loop, self._stopping), name="mcp-celery-loop", daemon=True
                )
                thread.start()
                self._loop, self._thread = loop, thread
            return self._loop

    @staticmethod
    def _main(loop: asyncio.AbstractEventLoop, stopping: threading.Event) -> None:
        asyncio.set_event_loop(loop)
        while not stopping.is_set():
            try:
                loop.run_forever()
            except BaseException:  # noqa: BLE001 - it is logged
                # SystemExit in an asyncio task that a component started, which asyncio lets through.
                log_raised(logger, "a component raised an exception that would have ended the event loop")
            else:
                if not stopping.is_set():
                    logger.error("a component stopped the event loop of all jobs; it goes on")
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    def stop(self, *last: Coroutine[Any, Any, None]) -> None:
        """Run the last coroutines, cancel whatever is left, and end the thread. Does nothing where no loop was made."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            for coroutine in last:
                coroutine.close()
            return
        self._ending = True
        _run_last(last, loop)
        try:
            asyncio.run_coroutine_threadsafe(_cancel_rest(), loop).result(UNWIND_SECONDS)
        except WaitTimeoutError:
            logger.warning("tasks of the event loop did not end within %.0f s", UNWIND_SECONDS)
        self._stopping.set()
        loop.call_soon_threadsafe(loop.stop)
        thread.join(UNWIND_SECONDS)
        self._forget()


def _run_last(last: Iterable[Coroutine[Any, Any, None]], loop: asyncio.AbstractEventLoop) -> None:
    for coroutine in last:
        try:
            asyncio.run_coroutine_threadsafe(coroutine, loop).result(UNWIND_SECONDS)
        except WaitTimeoutError:
            logger.warning("a clean-up did not end within %.0f s", UNWIND_SECONDS)
        except Exception:
            logger.exception("a clean-up failed")


def _unwind(call: Awaited[Any]) -> None:
    """Cancel an interrupted coroutine, and wait for its end: the next job must not meet it."""
    call.cancel()
    if not call.ends_within(UNWIND_SECONDS):
        logger.warning("an interrupted job did not end within %.0f s and goes on in the background", UNWIND_SECONDS)


def interrupt_threads() -> None:
    """Raise ``CancelledError`` in the tools that are no coroutines, and wait for their ``finally`` blocks.

    A cancelled coroutine leaves the thread behind in which the SDK runs such a tool, and a process that ends takes its
    threads with it. A blocking call is not interrupted: the exception waits for its end.
    """
    for thread in _busy_threads():
        raise_in_thread(cast(int, thread.ident), asyncio.CancelledError)
    deadline = time.monotonic() + UNWIND_SECONDS
    while _busy_threads():
        if time.monotonic() > deadline:
            logger.warning("a tool did not end within %.0f s, and is stopped with its process", UNWIND_SECONDS)
            return
        time.sleep(0.01)


def _busy_threads() -> list[threading.Thread]:
    """AnyIO's threads that run something. AnyIO has no public way to them; each has a queue of its own (4.11)."""
    return [
        thread
        for thread in threading.enumerate()
        if isinstance(work := getattr(thread, "queue", None), queue.Queue)
        and thread.name == "AnyIO worker thread"
        and work.unfinished_tasks
    ]


async def _cancel_rest() -> None:
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
