"""What the wire of every revision with tasks has in common."""

from __future__ import annotations

from datetime import UTC, datetime

from mcp_types import RequestParams
from pydantic import Field


class TaskIdParams(RequestParams):
    """Parameters of the requests about one task."""

    task_id: str = Field(alias="taskId")


def encode_time(milliseconds: int) -> str:
    """ISO 8601 in UTC.

    >>> encode_time(1_700_000_000_123)
    '2023-11-14T22:13:20.123Z'
    """
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
