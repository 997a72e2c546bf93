"""The compound key of a task, the Celery id made of it, and every Redis key. The one place where keys are spelled.

A task is addressed by *scope* (who made it) and *id* (256 random bits). The scope is part of every key, so a caller who
presents somebody else's task id computes another key and finds nothing: isolation needs no comparison to be remembered.

====================================== ================================ =========================================
Redis key                              holds                            lifetime
====================================== ================================ =========================================
``{prefix}:{ns}:task:auth:{scope}:ID`` hash: the task record            the task's ttl, set when it is created
``{prefix}:{ns}:task:anon:ID``         the same for anonymous callers   the same
``…:ID:snapshot``                      string: the caller's context     the same
``…:ID:questions``                     hash: what the caller is asked   the same
``…:ID:answers``                       hash: what it answered, until    the same
                                       a job has read it
``…:ID:events``                        pub/sub channel of the task      none (channels hold nothing)
``{prefix}:{ns}:job:JOBID``            string: full key of a shortened  the same as the record's
                                       Celery id
``{prefix}:{ns}:list:auth:…``          sorted set: positions of the     that of its longest-lived task
``{prefix}:{ns}:list:session:DIGEST``  tasks that an owner may list
``{prefix}:{ns}:open:DIGEST``          sorted set: open tasks of one    the same
``{prefix}:{ns}:failed:DIGEST``        string: failed look-ups of one   a minute from the first
``{prefix}:{ns}:expiry``               sorted set: tasks by their end   31 days from its last entry, as are the next
``{prefix}:{ns}:remembered``           hash: what the reaper must know
                                       of tasks that have expired
``{prefix}:{ns}:workers``              sorted set: heartbeats
``{prefix}:{ns}:claims:WORKER``        set: tasks whose job it has
``{prefix}:{ns}:due``                  sorted set: jobs to publish
``{prefix}:{ns}:exposed``              sorted set: looks at exposed jobs
``{prefix}:{ns}:reaper``               string: which process reaps      three heartbeats
====================================== ================================ =========================================
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final, Literal, cast, get_args
from urllib.parse import quote, unquote

TaskType = Literal["tool", "prompt", "resource"]

METHODS: Final[dict[TaskType, str]] = {"tool": "tools/call", "prompt": "prompts/get", "resource": "resources/read"}
"""The MCP request that a component is asked with."""

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


def _quote(segment: str) -> str:
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
    owner = "anon" if task_scope is None else f"auth:{_quote(task_scope)}"
    return f"{owner}:{_quote(client_task_id)}:{task_type}:{_quote(component_identifier)}"


def parse_task_key(key: str) -> TaskKeyParts:
    """Take a compound key apart.

    >>> parse_task_key("auth:client-a:task456:tool:my_tool")
    TaskKeyParts(task_scope='client-a', client_task_id='task456', task_type='tool', component_identifier='my_tool')
    >>> parse_task_key("anon:task456:resource:file%3A%2F%2Fdata.txt").component_identifier
    'file://data.txt'

    Args:
        key: A key as :func:`build_task_key` makes it.

    Returns:
        Its parts, unquoted.

    Raises:
        ValueError: The key has another form. Keys by session (``{session_id}:{task}:{type}:{component}``) are refused
            by name: tasks kept under a session are lost when the client reconnects.
    """
    tag, *segments = key.split(":")
    scope: str | None = None
    if tag == "auth" and len(segments) == 4:
        scope = unquote(segments.pop(0))
    elif tag not in ("auth", "anon") and len(segments) == 3:
        raise ValueError(
            f"task key {_shown(key)} has the form of a key by session, which is no longer used; expected {_FORMS}"
        )
    if tag not in ("auth", "anon") or len(segments) != 3:
        raise ValueError(f"malformed task key {_shown(key)}; expected {_FORMS}")
    client_task_id, task_type, component = segments
    if task_type not in _TASK_TYPES or not client_task_id or not component or scope == "":
        raise ValueError(f"malformed task key {_shown(key)}; expected {_FORMS}")
    return TaskKeyParts(scope, unquote(client_task_id), cast(TaskType, task_type), unquote(component))


def _shown(key: str) -> str:
    return repr(key if len(key) <= 200 else key[:200] + "…")


def get_client_task_id_from_key(key: str) -> str:
    """The id that the client holds.

    >>> get_client_task_id_from_key("auth:client-a:task456:tool:my_tool")
    'task456'

    Raises:
        ValueError: The key is malformed.
    """
    return parse_task_key(key).client_task_id


def task_redis_prefix(task_scope: str | None, *, prefix: str = "mcp_celery") -> str:
    """What the Redis keys of a scope's tasks begin with.

    >>> task_redis_prefix("client-a", prefix="mcp_celery:reports")
    'mcp_celery:reports:task:auth:client-a'
    >>> task_redis_prefix(None, prefix="mcp_celery:reports")
    'mcp_celery:reports:task:anon'

    Args:
        task_scope: Who may reach the tasks, None for anonymous callers.
        prefix: ``MCP_CELERY_KEY_PREFIX`` with the server's namespace.
    """
    return f"{prefix}:task:anon" if task_scope is None else f"{prefix}:task:auth:{_quote(task_scope)}"


def celery_job_id(key: str, leg: int = 1, *, hide_anonymous: bool = False) -> str:
    """The Celery id of a task's job: the compound key in an alphabet that every part of Celery can carry.

    ``%`` is written ``~`` (``~`` itself is quoted first), since Flower's Revoke button posts the id raw and loses ids
    with ``%``, ``?`` or ``#``. At most 155 bytes: over that the scope, then the component, give way to a digest, and
    the record keeps the full key. The task id never does for its length; that of an anonymous task, which is the right
    to read it, does where Celery's ids are not to show it. Later legs of a task append ``!2``, ``!3``, …, because a
    result backend ignores a second result for one id.

    >>> celery_job_id("auth:client-a:task456:resource:file%3A%2F%2Fdata.txt")
    'auth:client-a:task456:resource:file~3A~2F~2Fdata.txt'
    >>> celery_job_id("anon:task456:tool:my_tool", leg=2)
    'anon:task456:tool:my_tool!2'
    >>> celery_job_id("anon:q3Xw81abcdefghij:tool:my_tool", hide_anonymous=True)
    'anon:q3Xw81ab~~0552740228610825298f68fa3906d6f9:tool:my_tool'

    Args:
        key: A compound key.
        leg: Which job of the task, from 1.
        hide_anonymous: Whether a digest, behind its first characters, takes the place of an anonymous task's id.

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
    if hide_anonymous and head[0] == "anon":
        head[1] = _NOT_SHOWN.split(head[1][:_SHOWN_CHARS])[0] + _digest(head[1])
    stem = ":".join([*head, component])
    if len(stem) > room and head[0] == "auth" and len(head[1]) > _DIGEST_BYTES:
        head[1] = _digest(head[1])
        stem = ":".join([*head, component])
    if len(stem) > room and len(component) > _DIGEST_BYTES:
        stem = ":".join([*head, _digest(component)])
    if len(stem) > room:
        raise ValueError(f"the task id of {_shown(key)} is too long for a Celery id of {MAX_JOB_ID_BYTES} bytes")
    return stem if leg == 1 else f"{stem}!{leg}"


def _digest(segment: str) -> str:
    return _DIGEST_MARK + hashlib.sha256(segment.encode()).hexdigest()[:32]


_DIGEST_BYTES: Final = len(_digest(""))


def hides_id(job_id: str) -> bool:
    """Whether a digest stands in this Celery id for the id of an anonymous task."""
    tag, _, rest = job_id.partition(":")
    return tag == "anon" and _DIGEST_MARK in rest.partition(":")[0]


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
        job_id: Any Celery id, of ours or of somebody else's job.

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


INDEX_LIFETIME_MS: Final = 31 * 86_400_000
"""Indices live this long after their last entry was made: a day more than the longest life of a task."""


@dataclass(frozen=True, slots=True)
class RedisKeys:
    """The Redis keys of one server's tasks.

    Args:
        prefix: ``MCP_CELERY_KEY_PREFIX``.
        namespace: ``MCP_CELERY_NAMESPACE``, so that several servers can share one Redis.
    """

    prefix: str
    namespace: str

    @property
    def _root(self) -> str:
        return f"{self.prefix}:{self.namespace}"

    def record(self, task_scope: str | None, task_id: str) -> str:
        """Hash: the task's record."""
        return f"{task_redis_prefix(task_scope, prefix=self._root)}:{task_id}"

    def snapshot(self, task_scope: str | None, task_id: str) -> str:
        """String: the caller's context for the worker."""
        return self.record(task_scope, task_id) + ":snapshot"

    def channel(self, task_scope: str | None, task_id: str) -> str:
        """Pub/sub channel on which each change of the task is told."""
        return self.record(task_scope, task_id) + ":events"

    def questions(self, task_scope: str | None, task_id: str) -> str:
        """Hash: what the task's caller is asked, by the question's key."""
        return self.record(task_scope, task_id) + ":questions"

    def answers(self, task_scope: str | None, task_id: str) -> str:
        """Hash: what the caller answered and no job has read yet, by the question's key."""
        return self.record(task_scope, task_id) + ":answers"

    def records(self, task_scope: str | None) -> str:
        """What the keys of a scope's records begin with; the task id follows."""
        return self.record(task_scope, "")

    @property
    def all_records(self) -> str:
        """What the keys of all records begin with; the first parts of the compound key follow, up to the task id."""
        return f"{self._root}:task:"

    def index(self, task_scope: str | None, issuer: str | None, session: str | None) -> str | None:
        """Sorted set: where the tasks stand that an owner may list. None where nobody may.

        Args:
            task_scope: The owner's scope, None for an anonymous one.
            issuer: Issuer of the owner's token.
            session: Digest of an anonymous owner's session, None where there is none.
        """
        prefix = f"{self._root}:list"
        if task_scope is not None:
            return f"{prefix}:auth:{_quote(task_scope)}:{_quote(issuer or '')}"
        return None if session is None else f"{prefix}:session:{_quote(session)}"

    def counted(self, what: Literal["open", "failed"], requestor: str) -> str:
        """Sorted set: compound keys of a requestor's ``open`` tasks, by their end. String: its ``failed`` look-ups."""
        return f"{self._root}:{what}:{_digest(requestor)}"

    def job_alias(self, job_id: str) -> str:
        """String: the full compound key of a shortened Celery id, the same for every leg."""
        return f"{self._root}:job:{job_id.partition('!')[0]}"

    @property
    def expiry(self) -> str:
        """Sorted set: every task's compound key, by the time it expires. Index, see :data:`INDEX_LIFETIME_MS`."""
        return f"{self._root}:expiry"

    @property
    def remembered(self) -> str:
        """Hash: what the reaper must know of each task once its record has expired, by the compound key. Index."""
        return f"{self._root}:remembered"

    @property
    def workers(self) -> str:
        """Sorted set: the workers, by the time until which their last heartbeat holds. Index."""
        return f"{self._root}:workers"

    def claims(self, worker: str) -> str:
        """Set: compound keys of the open tasks whose job a worker has. Index."""
        return f"{self._root}:claims:{worker}"

    @property
    def due(self) -> str:
        """Sorted set: compound keys of the tasks whose next job is still to be published, by since when. Index."""
        return f"{self._root}:due"

    @property
    def exposed(self) -> str:
        """Sorted set: compound keys of open tasks of exposed jobs, by when to look at their results. Index."""
        return f"{self._root}:exposed"

    @property
    def reaper(self) -> str:
        """String: which process reaps, until its next sweep is overdue."""
        return f"{self._root}:reaper"
