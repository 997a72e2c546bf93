"""Celery's result backend, in memory."""

from __future__ import annotations

import json
from collections.abc import Sequence

from typing_extensions import override

from mcp_celery.engine import JobOutcome, StoredResult
from mcp_celery.engine.ports import TaskResults


class MemoryTaskResults(TaskResults):
    """Celery's result backend. Fulfils :class:`mcp_celery.engine.TaskResults`.

    Attributes:
        stored: Results by Celery id; take one out to let it expire.
    """

    def __init__(self) -> None:
        self.stored: dict[str, StoredResult] = {}

    def put(self, job_id: str, state: str, value: object) -> None:
        """Store what a job returned or raised, as Celery would: through JSON.

        Args:
            job_id: The job's Celery id.
            state: Celery's state, for example ``SUCCESS``.
            value: A ``JobOutcome`` or another JSON value; of an exception ``{"exc_type": …, "exc_message": […]}``.
        """
        self.stored[job_id] = StoredResult(state, json.loads(json.dumps(value, default=JobOutcome.__json__)))

    @override
    async def read(self, job_id: str) -> StoredResult | None:
        return self.stored.get(job_id)

    async def read_many(self, job_ids: Sequence[str]) -> dict[str, StoredResult | None]:
        """The jobs' stored results, as ``JobResults.read_many``."""
        return {job_id: self.stored.get(job_id) for job_id in job_ids}
