"""The compound key of a task, and the Celery id made of it. The one place where they are spelled.

A task is addressed by *scope* (who made it) and *id* (256 random bits). The scope is part of every key, so a caller who
presents another caller's task id computes another key and finds nothing: isolation depends on no comparison.

As a Celery id the key is written with ``~`` for ``%`` (Flower's Revoke button, RabbitMQ and SQLAlchemy cannot carry
every character) and has at most 155 bytes: a longer key gives up the scope, then the component, for a digest, never the
task id. Without authentication the task id gives the right to read. So log lines show its first eight characters
(``logs.py``), and under ``MCP_CELERY_HIDE_ANONYMOUS_IDS`` a Celery id has those and a digest. A record says whether its
jobs have such ids (``hides_id``), so the setting may change while tasks are open; ``{prefix}:{ns}:job:{id}`` maps each
shortened id to its key.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import re
from dataclasses import dataclass
from typing import Final, Literal, cast, get_args
from urllib.parse import quote, unquote

TaskType = Literal["tool", "prompt", "resource"]

METHODS: Final[dict[TaskType, str]] = {"tool": "tools/call", "prompt": "prompts/get", "resource": "resources/read"}
"""The MCP request that a component is asked with."""
ASKED_WITH: Final[dict[str, TaskType]] = {method: task_type for task_type, method in METHODS.items()}
"""The kind of component that an MCP request asks, by its method."""

MAX_JOB_ID_BYTES: Final = 155
"""What SQLAlchemy's result backend can hold; RabbitMQ's ``correlation_id`` ends at 255."""

MAX_LEGS: Final = 9999
_LEG_SUFFIX_BYTES: Final = 5
"""Room for ``!2`` … ``!9999`` behind an id, so that a task keeps one stem for all its legs."""
_TASK_TYPES: Final[frozenset[str]] = frozenset(get_args(TaskType))
_FORMS: Final = "'auth:{scope}:{task}:{type}:{component}' or 'anon:{task}:{type}:{component}'"
_DIGEST_MARK: Final = "~~"
"""Opens a segment that gave way to a digest. No quoted segment holds it, because ``~`` itself is quoted."""
_SHOWN_CHARS: Final = 8
"""What stands of an anonymous task's id before its digest: as much as a log line shows, so that both can be matched."""
_NOT_SHOWN: Final = re.compile(r"[^A-Za-z0-9_-]")


@dataclass(frozen=True, slots=True)
class TaskKeyParts:
    """A compound key taken apart, every part unquoted.

    Attributes:
        task_scope: Who may reach the task, None for an anonymous caller.
        client_task_id: The id that the client holds.
        task_type: ``tool``, ``prompt`` or ``resource``.
        component_identifier: The tool's or prompt's name, or the resource's URI.
    """

    task_scope: str | None
    client_task_id: str
    task_type: TaskType
    component_identifier: str


@functools.lru_cache(maxsize=1_024)
def quote_segment(segment: str) -> str:
    """A part of a key, without the characters that divide it."""
    # A request names its task up to ten times, and most requests name the same components.
    return quote(segment, safe="")


def build_task_key(task_scope: str | None, client_task_id: str, task_type: TaskType, component_identifier: str) -> str:
    """The compound key of a task.

    >>> build_task_key("client-a", "task456", "tool", "my_tool")
    'auth:client-a:task456:tool:my_tool'
    >>> build_task_key(None, "task456", "tool", "my_tool")
    'anon:task456:tool:my_tool'
    >>> build_task_key("client-a", "task456", "resource", "file://data.txt")
    'auth:client-a:task456:resource:file%3A%2F%2Fdata.txt'

    Args:
        task_scope: Who may reach the task, None for an anonymous caller.
        client_task_id: The id that the client holds.
        task_type: ``tool``, ``prompt`` or ``resource``.
        component_identifier: The tool's or prompt's name, or the resource's URI.

    Returns:
        The key, every segment percent-quoted.

    Raises:
        ValueError: A part is empty or the type is unknown.
    """
    if task_scope == "":
        raise ValueError("task_scope is empty; anonymous callers have the scope None")
    if not client_task_id or not component_identifier:
        raise ValueError(f"task id and component must not be empty; a task key is {_FORMS}")
    if task_type not in _TASK_TYPES:
        raise ValueError(f"unknown task type {task_type!r}; it is one of tool, prompt, resource")
    owner = "anon" if task_scope is None else f"auth:{quote_segment(task_scope)}"
    return f"{owner}:{quote_segment(client_task_id)}:{task_type}:{quote_segment(component_identifier)}"


def parse_task_key(key: str) -> TaskKeyParts:
    """Take a compound key apart.

    >>> parse_task_key("auth:client-a:task456:tool:my_tool")
    TaskKeyParts(task_scope='client-a', client_task_id='task456', task_type='tool', component_identifier='my_tool')
    >>> parse_task_key("anon:task456:resource:file%3A%2F%2Fdata.txt").component_identifier
    'file://data.txt'

    Args:
        key: A key as `build_task_key` makes it.

    Returns:
        Its parts, unquoted.

    Raises:
        ValueError: The key is no text, or has another form; the message shows the expected one. For a key by session
            (``{session_id}:{task}:{type}:{component}``), the earlier form, the message explains why it is refused.
    """
    if not isinstance(key, str):  # pyright: ignore[reportUnnecessaryIsInstance] - it may come from a message
        raise ValueError(f"malformed task key {_shown(key)}; expected {_FORMS}")  # noqa: TRY004 - as for any other form
    tag, *segments = key.split(":")
    scope: str | None = None
    if tag == "auth" and len(segments) == 4:
        scope = unquote(segments.pop(0))
    elif tag not in ("auth", "anon") and len(segments) == 3:
        raise ValueError(
            f"task key {_shown(key)} has the earlier form of a key by session, '{{session_id}}:{{task}}:{{type}}:"
            "{component}'; it is refused because a client that reconnects has another session, and would lose its "
            f"task; expected {_FORMS}"
        )
    if tag not in ("auth", "anon") or len(segments) != 3:
        raise ValueError(f"malformed task key {_shown(key)}; expected {_FORMS}")
    client_task_id, task_type, component = segments
    if task_type not in _TASK_TYPES or not client_task_id or not component or scope == "":
        raise ValueError(f"malformed task key {_shown(key)}; expected {_FORMS}")
    return TaskKeyParts(scope, unquote(client_task_id), cast(TaskType, task_type), unquote(component))


def _shown(key: object) -> str:
    """A key for an error, cut at 200 characters."""
    shown = repr(key)
    return shown if len(shown) <= 200 else shown[:200] + "…"


def get_client_task_id_from_key(key: str) -> str:
    """The id that the client holds.

    >>> get_client_task_id_from_key("auth:client-a:task456:tool:my_tool")
    'task456'

    Raises:
        ValueError: The key is malformed.
    """
    return parse_task_key(key).client_task_id


def task_redis_prefix(task_scope: str | None, *, prefix: str = "mcp_celery") -> str:
    """The prefix of the Redis keys of a scope's tasks.

    >>> task_redis_prefix("client-a", prefix="mcp_celery:reports")
    'mcp_celery:reports:task:auth:client-a'
    >>> task_redis_prefix(None, prefix="mcp_celery:reports")
    'mcp_celery:reports:task:anon'

    Args:
        task_scope: Who may reach the tasks, None for anonymous callers.
        prefix: ``MCP_CELERY_KEY_PREFIX`` with the server's namespace.
    """
    return f"{prefix}:task:anon" if task_scope is None else f"{prefix}:task:auth:{quote_segment(task_scope)}"


class Hidden(enum.IntFlag):
    """For which parts of a task's compound key its Celery ids have a digest, whatever their length."""

    NOTHING = 0
    TASK_ID = 1
    """Of an anonymous task: it is the right to read the task."""
    COMPONENT = 2
    """The URI of a resource, whose arguments are not to be shown."""


def celery_job_id(key: str, leg: int = 1, *, hidden: Hidden = Hidden.NOTHING) -> str:
    """The Celery id of a task's job: the compound key in an alphabet that every part of Celery can carry.

    ``%`` is written ``~`` (``~`` itself is quoted first), since Flower's Revoke button posts the id raw and loses ids
    with ``%``, ``?`` or ``#``. At most 155 bytes: over that the scope, then the component, give way to a digest, and
    the record keeps the full key. The task id never does for its length. What Celery's ids are not to show gives way
    in any case. Later legs of a task append ``!2``, ``!3``, …, because a
    result backend ignores a second result for one id.

    >>> celery_job_id("auth:client-a:task456:resource:file%3A%2F%2Fdata.txt")
    'auth:client-a:task456:resource:file~3A~2F~2Fdata.txt'
    >>> celery_job_id("anon:task456:tool:my_tool", leg=2)
    'anon:task456:tool:my_tool!2'
    >>> celery_job_id("anon:q3Xw81abcdefghij:tool:my_tool", hidden=Hidden.TASK_ID)
    'anon:q3Xw81ab~~0552740228610825298f68fa3906d6f9:tool:my_tool'

    Args:
        key: A compound key.
        leg: Which job of the task, from 1.
        hidden: What it is not to show. Of the id of an anonymous task its first characters stay, before the digest.

    Returns:
        An id of ASCII letters, digits and ``_ . - ~ : !``.

    Raises:
        ValueError: The key is malformed, the leg is not within 1…9999, or the task id alone is too long.
    """
    if not 1 <= leg <= MAX_LEGS:
        raise ValueError(f"leg must be within 1…{MAX_LEGS}, not {leg}")
    parse_task_key(key)
    *head, component = key.replace("~", "%7E").replace("%", "~").split(":")
    room = MAX_JOB_ID_BYTES - _LEG_SUFFIX_BYTES
    if Hidden.COMPONENT in hidden:
        component = digest(component)
    if Hidden.TASK_ID in hidden and head[0] == "anon":
        head[1] = _NOT_SHOWN.split(head[1][:_SHOWN_CHARS])[0] + digest(head[1])
    stem = ":".join([*head, component])
    if len(stem) > room and head[0] == "auth" and len(head[1]) > _DIGEST_BYTES:
        head[1] = digest(head[1])
        stem = ":".join([*head, component])
    if len(stem) > room and len(component) > _DIGEST_BYTES:
        stem = ":".join([*head, digest(component)])
    if len(stem) > room:
        raise ValueError(f"the task id of {_shown(key)} is too long for a Celery id of {MAX_JOB_ID_BYTES} bytes")
    return stem if leg == 1 else f"{stem}!{leg}"


def digest(segment: str) -> str:
    """A short name for a text that is too long, or must not be read."""
    return _DIGEST_MARK + hashlib.sha256(segment.encode()).hexdigest()[:32]


_DIGEST_BYTES: Final = len(digest(""))


def later_job_id(job_id: str, leg: int) -> str:
    """The Celery id of a later job of the task whose job has this one.

    >>> later_job_id("anon:task456:tool:my_tool!2", 3)
    'anon:task456:tool:my_tool!3'
    """
    return f"{job_id.partition('!')[0]}!{leg}"


def is_shortened(job_id: str) -> bool:
    """Whether a part of the compound key gave way to a digest in this Celery id."""
    return _DIGEST_MARK in job_id


def task_key_from_job_id(job_id: str) -> str | None:
    """The compound key that a Celery id was made of.

    >>> task_key_from_job_id("anon:task456:resource:file~3A~2F~2Fdata.txt!2")
    'anon:task456:resource:file%3A%2F%2Fdata.txt'
    >>> task_key_from_job_id("4c4b0ba4-0d8a-4a2a-8e56-0c6e3bd1c2f5") is None
    True

    Args:
        job_id: Any Celery id, of an MCP job or of another one.

    Returns:
        The key, or None when the id is not ours or was shortened (then the store knows the full key).
    """
    stem, mark, leg = job_id.partition("!")
    if is_shortened(job_id) or (mark and not leg.isdecimal()):
        return None
    key = stem.replace("~", "%").replace("%7E", "~")
    try:
        parse_task_key(key)
    except ValueError:
        return None
    return key
