"""Which store keeps the record of a job's task.

A worker whose ``MCP_CELERY_REDIS_URL`` or ``MCP_CELERY_KEY_PREFIX`` differs from its server's finds no record for any
job. To distinguish such a worker from one whose task has expired, each store has a *mark*: a random id and the time
when the first server made it. The message of a job names the mark of the store that keeps its record.

A worker that receives a message with another mark than its own store's, and finds no record there, decides so:

- its store was made or emptied after the message was published: the record is lost, and the job is dropped;
- otherwise another store keeps the record: the worker gives the message back (``worker/celery/other_stores.py``).
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Final, Literal, Self

from mcp_celery.engine.record import now_ms

_TEXT: Final = re.compile(r"([0-9a-f]{16})@(\d{1,15})", re.ASCII)

Whereabouts = Literal["here", "lost", "elsewhere"]
"""Where the record of a message is that this store does not have. ``here``: in this store, until it expired. ``lost``:
in a store whose data are lost. ``elsewhere``: in another store.
"""


@dataclass(frozen=True, slots=True)
class StoreMark:
    """A store's id at a time.

    Attributes:
        mark_id: 16 hexadecimal digits.
        at_ms: Of the store: when the mark was made. Of a message: when it was published. In ms since the epoch.
    """

    mark_id: str
    at_ms: int

    @classmethod
    def new(cls) -> Self:
        """A mark for a store that has none yet."""
        return cls(secrets.token_hex(8), now_ms())

    @classmethod
    def parse(cls, text: object) -> Self | None:
        """Read :meth:`__str__`. None for anything else."""
        found = _TEXT.fullmatch(text) if isinstance(text, str) else None
        return None if found is None else cls(found[1], int(found[2]))

    def __str__(self) -> str:
        return f"{self.mark_id}@{self.at_ms}"


def whereabouts(message: StoreMark, ours: StoreMark | None) -> Whereabouts:
    """Where the record of a message is, which this store does not have.

    Args:
        message: The mark in the message.
        ours: The store's mark. None: no server has used this store.
    """
    if ours is None:
        return "elsewhere"
    if ours.mark_id == message.mark_id:
        return "here"
    return "lost" if ours.at_ms > message.at_ms else "elsewhere"
