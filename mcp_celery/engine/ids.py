"""Ids of tasks."""

from __future__ import annotations

import re
import secrets
from typing import Final

_WIRE_TASK_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


def new_task_id() -> str:
    """256 random bits in the URL-safe alphabet: for anonymous callers the id is the bearer of the right to read.

    A letter or a digit comes first: commands take what begins with a hyphen for an option.
    """
    while not (task_id := secrets.token_urlsafe(32))[0].isalnum():
        pass
    return task_id


def is_wire_task_id(value: str) -> bool:
    """Whether a string from the wire can be one of our task ids at all: short, and of the URL-safe alphabet.

    Checked before anything else is done with it, so that no key, log line or message is made of arbitrary input.
    """
    return _WIRE_TASK_ID.fullmatch(value) is not None
