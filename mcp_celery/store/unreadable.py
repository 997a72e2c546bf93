"""Entries in the store that cannot be read as entries of this package.

One damaged entry must neither stop the work on the others nor look like a store that does not answer. So an entry that
cannot be read is removed from the index that names it, and one line of the log names the key and the entry.
"""

from __future__ import annotations

import logging
import re
from typing import Final

import redis

from mcp_celery.engine import TaskRef
from mcp_celery.keys import celery_job_id

logger = logging.getLogger(__name__)

UNREADABLE: Final = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What decoders raise for text that is not what they expect."""

_OUTAGES: Final = re.compile(r"\b(OOM|MISCONF|READONLY|NOREPLICAS|LOADING|BUSY|MASTERDOWN|NOPERM|CLUSTERDOWN)\b")
_MAX_CHARS: Final = 200


def is_data_error(error: BaseException) -> bool:
    """Whether a command failed because of what a key holds. Every other error of a command is one of the store.

    >>> is_data_error(redis.ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"))
    True
    >>> is_data_error(redis.ResponseError("MISCONF Redis is configured to save RDB snapshots"))
    False
    >>> is_data_error(redis.ConnectionError("lost"))
    False
    """
    if isinstance(error, redis.DataError):
        return True  # nothing was sent: a value came from what was read, and has no form in Redis
    text = str(error)
    if type(error) is not redis.ResponseError or _OUTAGES.search(text):
        return False
    return "WRONGTYPE" in text or "user_script" in text or "not an integer" in text


def shown(name: bytes | str) -> str:
    """A key or a member for the log: printable ASCII, quoted, and short."""
    text = name.decode("ascii", "backslashreplace") if isinstance(name, bytes) else name
    return ascii(text if len(text) <= _MAX_CHARS else text[:_MAX_CHARS] + "…")


def key_of(member: bytes) -> str:
    """The compound key that is a member of an index.

    Raises:
        ValueError: It is not a task key, or no Celery id can be made of it.
    """
    key = member.decode()
    celery_job_id(key)
    return key


def ref_of(member: bytes) -> TaskRef:
    """Where the task of a compound key is kept.

    Raises:
        ValueError: As :func:`key_of`.
    """
    return TaskRef.of_key(key_of(member))


def log_removed(key: bytes | str, member: bytes | str | None, reason: str = "") -> None:
    """Say that an entry was removed.

    Args:
        key: Of the index.
        member: The entry; None for the whole key, which held another type.
        reason: Why it cannot be read.
    """
    if member is None:
        logger.error("deleted %s in the task store: a key of this name has another type", shown(key))
    else:
        why = reason or "it is not an entry of this package"
        logger.error("removed %s from %s in the task store: %s", shown(member), shown(key), why)


def reason_of(error: BaseException) -> str:
    """An error's kind and text on one line; redis-py's texts name the address, never the password."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
