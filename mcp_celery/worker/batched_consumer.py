"""The consumer of our own app's workers, which takes and acknowledges many messages of a Redis broker at once.

Apps of others that have the setting ``worker_consumer`` name :class:`mcp_celery.worker.consumer.Consumer`, which leaves
their transport as it is.
"""

from __future__ import annotations

from typing import Any

from mcp_celery.worker.celery.batched_channel import batch
from mcp_celery.worker.consumer import Consumer as _Consumer


class Consumer(_Consumer):
    """As its base, on :mod:`mcp_celery.worker.celery.batched_channel`."""

    def _prepare(self, connection: Any) -> None:
        if not batch(connection, pool=self.pool, acknowledges_late=self._acknowledges_late):
            super()._prepare(connection)

    def _acknowledges_late(self, job_name: str) -> bool:
        job = self.app.tasks.get(job_name)
        return job is not None and bool(job.acks_late)
