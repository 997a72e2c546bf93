"""Ids of tasks and cursors of lists, as clients send them."""

from __future__ import annotations

import re
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Final

from mcp_celery.errors import InvalidCursorError

_WIRE_TASK_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


def new_task_id() -> str:
    """256 random bits in the URL-safe alphabet: for anonymous callers the id is the bearer of the right to read.

    A letter or a digit comes first: commands take what begins with a hyphen for an option.
    """
    while not (task_id := secrets.token_urlsafe(32))[0].isalnum():
        pass
    return task_id


def new_call() -> str:
    """A name for one call of a store, by which the store knows it again when it is made again: its answer was lost.

    A record keeps the names of its last few calls, so that 32 random bits are enough.
    """
    return secrets.token_hex(4)


def is_wire_task_id(value: str) -> bool:
    """Whether a string from the wire can be one of our task ids at all: short, and of the URL-safe alphabet.

    Checked before anything else is done with it, so that no key, log line or message is made of arbitrary input.
    """
    return _WIRE_TASK_ID.fullmatch(value) is not None


PAGE_SIZE: Final = 50
"""Tasks in one part of a list."""

_POSITION: Final = re.compile(r"\d{15}:[A-Za-z0-9_-]{1,64}")
_MAX_CURSOR_CHARS: Final = 120


def cursor_at(position: str) -> str:
    """The cursor behind a task's position.

    >>> cursor_at("001790000000000:task456")
    'MDAxNzkwMDAwMDAwMDAwOnRhc2s0NTY='
    """
    return urlsafe_b64encode(position.encode()).decode()


def position_of(cursor: str) -> str:
    """The position that a cursor stands for.

    Raises:
        InvalidCursorError: This package did not make it.
    """
    try:
        position = urlsafe_b64decode(cursor[:_MAX_CURSOR_CHARS].encode("ascii")).decode("ascii")
    except ValueError:  # characters of another alphabet, or a length that base64 does not have
        raise InvalidCursorError from None
    if len(cursor) > _MAX_CURSOR_CHARS or not _POSITION.fullmatch(position):
        raise InvalidCursorError
    return position
