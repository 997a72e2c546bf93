"""Where a list of tasks goes on: an opaque cursor, which stays good while tasks come and go."""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Final

from mcp_celery.errors import InvalidCursorError

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
        InvalidCursorError: It is none of ours.
    """
    try:
        position = urlsafe_b64decode(cursor[:_MAX_CURSOR_CHARS].encode("ascii")).decode("ascii")
    except ValueError:  # characters of another alphabet, or a length that base64 does not have
        raise InvalidCursorError from None
    if len(cursor) > _MAX_CURSOR_CHARS or not _POSITION.fullmatch(position):
        raise InvalidCursorError
    return position
