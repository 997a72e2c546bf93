"""A job's message as the worker's parent holds it. Loaded by Celery in workers only, from ``ComponentJob.Request``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:

    class _Request:
        id: str
        task: Any
        expires: datetime | None

        def info(self, safe: bool = False) -> dict[str, Any]: ...
        def terminate(self, pool: Any, signal: Any = None) -> None: ...
        def _announce_cancelled(self, emit_retry: bool = True) -> None: ...
        def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None: ...
        def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None: ...
else:
    from celery.worker.request import Request as _Request


class DiscreetRequest(_Request):
    """Celery's, but it shows less, knows expired jobs from revoked ones, and can be ended on every pool."""

    def info(self, safe: bool = False) -> dict[str, Any]:  # noqa: ARG002 - told or not, it is safe
        """What ``inspect active``, ``reserved`` and Flower's page of a worker show, without the arguments' values."""
        return super().info(safe=True)

    def maybe_expire(self) -> bool:
        """Whether the job has expired. Celery would also count it among the revoked ones, where it is cancelled."""
        return self.expires is not None and datetime.now(UTC if self.expires.tzinfo else None) > self.expires

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        """End the job in a cold shutdown. Celery would also end it when the connection to the broker is lost, for the
        broker to deliver it again; but its claim protects it, so it goes on.
        """
        if emit_retry:
            return
        try:
            super().cancel(pool, signal, emit_retry=False)
        except NotImplementedError:  # threads and solo: Celery would give up its shutdown, and wait for the job
            self._announce_cancelled(emit_retry=False)
            self.task.runtime.abandon(self.id, interrupt=True)

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """End the job as its pool can; where it cannot (threads), by cancelling its coroutine.

        A tool that is no coroutine goes on in its thread, and ends when it uses its context.
        """
        try:
            super().terminate(pool, signal)
        except NotImplementedError:
            # In this order: a body that has not begun meets the cancelled record.
            self._announce_revoked("terminated", True, signal, False)
            self.task.runtime.abandon(self.id, interrupt=True)
