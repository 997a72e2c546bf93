"""Cancels tasks whose jobs an operator revokes, by ``celery control revoke`` or by Flower's button.

Celery notes a revoked id in the memory of each worker, and says so (``task_revoked``) only when a worker reaches the
job, which may be hours later. So each worker looks at that memory, in a thread of its own, since it has to ask the
store. After our own cancel there is nothing left to do: it has moved the record before it revokes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection
from typing import Any, Final

from celery import Celery, bootsteps

from mcp_celery.engine import revoked
from mcp_celery.errors import StoreUnavailableError
from mcp_celery.logs import get_logger
from mcp_celery.worker.celery.bootsteps import runtimes

logger = get_logger(__name__)

LOOK_EVERY_SECONDS: Final = 0.25
STORE_PAUSE_SECONDS: Final = 1.0
"""Between two tries while the store does not answer."""
STOP_SECONDS: Final = 5.0


class RevokedIds:
    """Tells what is new in ``celery.worker.state.revoked``.

    Args:
        ids: That set. It keeps its entries in a dictionary, the newest last, so one look at the end shows whether
            anything was added.
    """

    def __init__(self, ids: Any) -> None:
        self._entries: dict[Any, Any] = ids._data
        self._newest: Any = None
        self._known: frozenset[Any] = frozenset()

    def news(self) -> Collection[str]:
        """The ids that were not there at the last look."""
        try:
            newest = next(reversed(self._entries.values()), None)
            if newest is self._newest:
                return ()
            now = frozenset(self._entries)
        except RuntimeError:  # Celery's thread adds to it this moment
            return ()
        before, self._known, self._newest = self._known, now, newest
        return [one for one in now - before if isinstance(one, str)]


class RevokedWatch:
    """Cancels the tasks of revoked jobs.

    Args:
        app: The worker's app; the jobs are those of the servers that are registered with it.
        ids: ``celery.worker.state.revoked``.
    """

    def __init__(self, app: Celery, ids: Any) -> None:
        self._app = app
        self._ids = RevokedIds(ids)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._main, name="mcp-celery-revoked", daemon=True)

    def start(self) -> None:
        """Begin to look; what a state database has kept over a restart is looked at first."""
        self._thread.start()

    def stop(self) -> None:
        """Stop looking."""
        self._stopping.set()
        self._thread.join(STOP_SECONDS)

    def _main(self) -> None:
        waiting: deque[str] = deque()
        pause = 0.0
        while not self._stopping.wait(pause):
            waiting.extend(self._ids.news())
            pause = LOOK_EVERY_SECONDS
            while waiting and not self._stopping.is_set():
                try:
                    self._cancel(waiting[0])
                except StoreUnavailableError:
                    pause = STORE_PAUSE_SECONDS
                    break
                except Exception:
                    logger.exception("could not cancel the task of the revoked job %s", waiting[0])
                waiting.popleft()

    def _cancel(self, job_id: str) -> None:
        for runtime in runtimes(self._app):
            ledger = runtime.ledger(runtime.namespace)
            record = ledger.find(job_id)
            if record is None:
                continue
            if record.is_open and (changed := ledger.change(record.ref, revoked())) and changed.accepted:
                logger.info("job %s was revoked by an operator: its task is cancelled", job_id)
            runtime.abandon(job_id)


class WatchRevoked(bootsteps.StartStopStep):
    """The watch as a step of a worker (``app.steps["worker"]``)."""

    def create(  # pyright: ignore[reportIncompatibleMethodOverride] - the stub says that steps make nothing
        self, parent: Any
    ) -> RevokedWatch:
        """Make the watch of a worker, which the worker starts and stops."""
        return RevokedWatch(parent.app, parent.state.revoked)
