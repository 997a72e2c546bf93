"""Creations that make one task, however often their request comes: the same key from the same caller is the same task.

A store keeps a digest of each key for as long as its task, and what the request said as a digest that is keyed with the
key. So neither the keys nor what low-entropy arguments were can be read there.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from dataclasses import dataclass
from typing import Final, Literal

from mcp_celery.engine.record import Caller
from mcp_celery.engine.submission import Idempotency, Submission
from mcp_celery.errors import InvalidIdempotencyKeyError

Publication = Literal["published", "publishing", "unpublished"]
"""Where the first job of an earlier creation is. ``published``: the broker has it, as far as can be known.
``publishing``: the request that created the task publishes it now, and may yet take the task back. ``unpublished``:
that request has died; the request that gets this answer publishes the job, and no other does.
"""
_KEY: Final = re.compile(r"[\x20-\x7e]{1,255}")
_RANDOM_KEY: Final = re.compile(r"[A-Za-z0-9_-]{22,255}")


@dataclass(frozen=True, slots=True)
class EarlierTask:
    """The task that an earlier request with the same idempotency key has created.

    Attributes:
        task_id: Its id. Its scope is that of the request.
        is_same_request: Whether the earlier request said the same.
        publication: Where its first job is.
    """

    task_id: str
    is_same_request: bool
    publication: Publication = "published"


def idempotency_of(key: object, submission: Submission) -> Idempotency:
    """The idempotency of a request with a key.

    >>> from mcp_celery.config import TaskConfig
    >>> from mcp_celery.context import TaskContextSnapshot
    >>> snapshot = TaskContextSnapshot(protocol_version="2026-07-28", params={"name": "sell"})
    >>> alice = Submission(
    ...     caller=Caller("alice"), task_type="tool", component="sell", config=TaskConfig(), snapshot=snapshot
    ... )
    >>> idempotency_of("order 7", alice) == idempotency_of("order 7", alice)
    True

    Args:
        key: As the client sent it.
        submission: The request.

    Raises:
        InvalidIdempotencyKeyError: The key has another form, or could be guessed by others of the same scope.
    """
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise InvalidIdempotencyKeyError("it must be a text of 1 to 255 printable ASCII characters")
    whose = _whose(submission.caller)
    if whose is None and not _RANDOM_KEY.fullmatch(key):
        raise InvalidIdempotencyKeyError(
            "all callers without authentication and without a session share one scope, so theirs must be random: at "
            "least 128 bits as 22 or more base64url characters (A-Z, a-z, 0-9, - and _)"
        )
    name = hashlib.sha256(json.dumps([whose, key]).encode()).hexdigest()
    said = [submission.task_type, submission.component, submission.snapshot.params, submission.ttl_ms]
    canonical = json.dumps(said, sort_keys=True, default=str)
    return Idempotency(name, hmac.new(key.encode(), canonical.encode(), hashlib.sha256).hexdigest())


def _whose(caller: Caller) -> str | None:
    """Among whose keys a caller's key is; None for the keys that all anonymous callers share."""
    if caller.scope is not None:
        return json.dumps(["scope", caller.scope, caller.issuer])
    return None if caller.is_shared else caller.requestor
