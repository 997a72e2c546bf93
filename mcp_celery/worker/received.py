"""A job's message as the worker's parent holds it. Loaded by Celery in workers only, from ``ComponentJob.Request``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:

    class _Request:
        def info(self, safe: bool = False) -> dict[str, Any]: ...
else:
    from celery.worker.request import Request as _Request


class DiscreetRequest(_Request):
    """Tells ``inspect active``, ``reserved`` and Flower's page of a worker only the arguments that may be shown."""

    def info(self, safe: bool = False) -> dict[str, Any]:  # noqa: ARG002 - told or not, it is safe
        """As Celery's, but never with the arguments' own values."""
        return super().info(safe=True)
