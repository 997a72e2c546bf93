"""The envelope of a script's reply (``reply.lua``): what it removed and changed, asks for, and leaves to be done."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple, cast, get_args

from mcp_celery.engine import MOVES, Cause, Transition
from mcp_celery.store.codec import one_of
from mcp_celery.store.unreadable import UNREADABLE, log_removed, reason_of

logger = logging.getLogger(__name__)

REPLY_MARK: Final = "mcp_celery:reply"
"""Opens the reply of a script that changed a task or removed something."""
_CAUSES: Final[tuple[Cause, ...]] = get_args(Cause)


class NextScript(NamedTuple):
    """A script that a script leaves to its caller to call next.

    Attributes:
        name: Its name.
        key: The first key.
        keys: More keys.
        args: Arguments.
    """

    name: str
    key: bytes
    keys: Sequence[bytes]
    args: Sequence[bytes]


class OpenedReply(NamedTuple):
    """A script's reply, taken apart.

    Attributes:
        own: The script's own reply. There is none where it asks for keys.
        transitions: The changes that it made.
        asked_for: The keys that it asks for: it is to be called again with these.
        to_do: The scripts to call next.
    """

    own: Any
    transitions: Sequence[Transition] = ()
    asked_for: Sequence[bytes] = ()
    to_do: Sequence[NextScript] = ()


def opened(reply: Any) -> OpenedReply:
    """Take a script's reply apart. What the script removed is logged."""
    if not isinstance(reply, list):
        return OpenedReply(reply)
    parts = cast("list[Any]", reply)
    if not parts or parts[0] != REPLY_MARK.encode():
        return OpenedReply(parts)
    _, removed, changed, asked_for, to_do, *own = parts
    for key, member in cast("Sequence[tuple[bytes, bytes | None]]", removed):
        log_removed(key, member)
    return OpenedReply(
        own[0] if own else None,
        list(_transitions(changed)),
        asked_for,
        [NextScript(name.decode(), key, keys, args) for name, key, keys, args in to_do],
    )


def _transitions(changed: Sequence[Any]) -> Iterator[Transition]:
    """The changes, as ``note`` of common.lua writes them."""
    for fields in changed:
        try:
            cause, before, at, key, declared_as, after, attempt, leg, created, started, is_error = _texts(fields)
            yield Transition.of_key(
                _some(key),
                declared_as,
                before=one_of(MOVES, before),
                after=one_of(MOVES, after),
                attempt=int(_some(attempt)),
                leg=int(_some(leg)),
                cause=one_of(_CAUSES, cause),
                at_ms=int(_some(at)),
                created_at_ms=int(_some(created)),
                started_at_ms=None if started is None else int(started),
                is_error=is_error == "1",
            )
        except UNREADABLE as error:
            logger.error("could not report a change of a task, whose record is damaged: %s", reason_of(error))


def _texts(fields: Sequence[bytes | None]) -> list[str | None]:
    return [None if field is None else field.decode() for field in fields]


def _some(text: str | None) -> str:
    if text is None:
        raise ValueError("a field of the record is missing")
    return text
