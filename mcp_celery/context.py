"""Who asks and where we are: the caller's scope, the running task's context, and the snapshot that carries them over.

Plain values, context variables and weak maps only. How to reach the caller's token is injected by ``protocol/`` and
``worker/`` (:func:`provide_token_source`), so that nothing here imports the SDK, Celery or Redis.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Protocol, Self
from weakref import WeakValueDictionary

from mcp_celery.keys import TaskKeyParts


class AccessTokenLike(Protocol):
    """What of the SDK's ``AccessToken`` says who a caller is."""

    @property
    def client_id(self) -> str: ...
    @property
    def subject(self) -> str | None: ...
    @property
    def scopes(self) -> list[str]: ...
    @property
    def claims(self) -> dict[str, Any] | None: ...
    @property
    def expires_at(self) -> int | None: ...


def _no_token() -> AccessTokenLike | None:
    return None


_token_source: Callable[[], AccessTokenLike | None] = _no_token


def provide_token_source(source: Callable[[], AccessTokenLike | None]) -> None:
    """Say how the current caller's access token is reached (the SDK keeps it in a context variable).

    Args:
        source: Returns the current request's token, None for an anonymous caller.
    """
    global _token_source  # noqa: PLW0603 - the one injected seam of this leaf
    _token_source = source


def get_task_scope() -> str | None:
    """The scope that the current caller's tasks are kept under.

    Returns:
        ``client_id|sub`` when the token names a subject, else ``client_id``, else None for an anonymous caller.
    """
    token = _token_source()
    return None if token is None else scope_of(token.client_id, token.subject)


def scope_of(client_id: str, subject: str | None) -> str:
    """A caller's scope. ``|`` and ``%`` inside a part are quoted, so that no two callers share one.

    >>> scope_of("client-a", "alice")
    'client-a|alice'
    >>> scope_of("client-a", None)
    'client-a'
    >>> scope_of("a|b", "c") == scope_of("a", "b|c")
    False
    """
    parts = [client_id] if subject is None else [client_id, subject]
    return "|".join(part.replace("%", "%25").replace("|", "%7C") for part in parts)


def get_task_issuer() -> str | None:
    """The issuer that the caller's token names (``iss``). A subject is unique only for its issuer."""
    token = _token_source()
    issuer = None if token is None else (token.claims or {}).get("iss")
    return None if issuer is None else str(issuer)


@dataclass(frozen=True, slots=True)
class CallerToken:
    """The caller's token without the token string, which is never stored.

    Attributes:
        client_id: OAuth client.
        scopes: Granted OAuth scopes.
        subject: Resource owner, unique for its issuer.
        claims: Further claims, ``iss`` among them.
        expires_at: Seconds since the epoch, None when the token does not say.
    """

    client_id: str
    scopes: list[str] = field(default_factory=list[str])
    subject: str | None = None
    claims: dict[str, Any] | None = None
    expires_at: int | None = None

    @property
    def expired(self) -> bool:
        """Whether the token's own lifetime has ended."""
        return self.expires_at is not None and self.expires_at < time.time()


class _Pipeline(Protocol):
    def set(self, name: str, value: str, *, px: int) -> Any: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskContextSnapshot:
    """What of the creating request a job needs to serve it as the request itself would have been. Plain JSON values.

    Attributes:
        protocol_version: The caller's protocol revision; the result is shaped for it.
        request_id: JSON-RPC id of the creating request.
        client_info: ``{"name", "version", …}`` of the client.
        client_capabilities: What the client declared.
        headers: HTTP request headers that the allowlist lets through, None without HTTP.
        session_id: HTTP session, None where there is none.
        token: The caller, None for an anonymous one.
    """

    protocol_version: str
    request_id: str | int | None = None
    client_info: dict[str, Any] | None = None
    client_capabilities: dict[str, Any] | None = None
    headers: dict[str, str] | None = None
    session_id: str | None = None
    token: CallerToken | None = None

    @classmethod
    def capture(
        cls,
        *,
        protocol_version: str,
        request_id: str | int | None = None,
        client_info: dict[str, Any] | None = None,
        client_capabilities: dict[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        header_names: frozenset[str] = frozenset(),
        session_id: str | None = None,
    ) -> Self:
        """Take the snapshot of the current request; the token comes from the injected source.

        Args:
            header_names: Lower-case names of the headers to keep; everything else is left behind.
            **: As the attributes of the class.
        """
        token = _token_source()
        return cls(
            protocol_version=protocol_version,
            request_id=request_id,
            client_info=client_info,
            client_capabilities=client_capabilities,
            headers=None
            if headers is None
            else {name.lower(): value for name, value in headers.items() if name.lower() in header_names},
            session_id=session_id,
            token=None
            if token is None
            else CallerToken(token.client_id, list(token.scopes), token.subject, token.claims, token.expires_at),
        )

    def to_json(self) -> str:
        """The snapshot as JSON text, absent values left out."""
        return json.dumps({name: value for name, value in asdict(self).items() if value is not None})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read :meth:`to_json`'s text; fields of a later version are ignored.

        Raises:
            ValueError: The text is not a snapshot.
        """
        try:
            found = json.loads(text)
            known = {one.name: found[one.name] for one in fields(cls) if one.name in found}
            if (token := known.get("token")) is not None:
                known["token"] = CallerToken(
                    **{one.name: token[one.name] for one in fields(CallerToken) if one.name in token}
                )
            return cls(**known)
        except (TypeError, KeyError, json.JSONDecodeError) as error:
            raise ValueError("not a task context snapshot") from error

    def save(self, pipeline: _Pipeline, key: str, ttl_ms: int) -> None:
        """Queue the write of this snapshot on a Redis pipeline.

        Args:
            pipeline: redis-py's pipeline, or anything with its ``set``.
            key: Where to put it.
            ttl_ms: Its lifetime, that of the task.
        """
        pipeline.set(key, self.to_json(), px=ttl_ms)


@dataclass(frozen=True, slots=True)
class TaskContext:
    """Where we are, while a job runs.

    Attributes:
        key: The parts of the task's compound key.
        job_id: The Celery id of this job.
        namespace: The namespace of the server whose component runs.
        attempt: Which delivery of the task this is, from 1.
        snapshot: The creating request's context.
    """

    key: TaskKeyParts
    job_id: str
    namespace: str
    attempt: int
    snapshot: TaskContextSnapshot


_current: ContextVar[TaskContext | None] = ContextVar("mcp_celery_task", default=None)


def get_task_context() -> TaskContext | None:
    """The running task's context, None outside a job.

    >>> get_task_context() is None
    True
    """
    return _current.get()


def get_task_session_id() -> str | None:
    """The session of the request that created the running task, None outside a job or without sessions."""
    current = _current.get()
    return None if current is None else current.snapshot.session_id


@contextmanager
def restore_task_snapshot(context: TaskContext) -> Generator[TaskContextSnapshot]:
    """Make ``context`` the current one while a job runs."""
    token = _current.set(context)
    try:
        yield context.snapshot
    finally:
        _current.reset(token)


_sessions: WeakValueDictionary[str, Any] = WeakValueDictionary()
_servers: WeakValueDictionary[str, Any] = WeakValueDictionary()


def register_task_session(session_id: str, session: Any) -> None:
    """Remember a live session, weakly: it is released when its connection ends."""
    _sessions[session_id] = session


def get_task_session(session_id: str) -> Any | None:
    """The live session of this process with that id, None when there is none."""
    return _sessions.get(session_id)


def register_task_server(namespace: str, server: Any) -> None:
    """Remember, weakly, the server of a namespace in this process."""
    _servers[namespace] = server


def get_task_server(namespace: str | None = None) -> Any | None:
    """The server of a namespace, or of the running task.

    Args:
        namespace: None for the running task's own.

    Returns:
        The ``MCPServer``, None when this process has none for it.
    """
    if namespace is None:
        current = _current.get()
        if current is None:
            return None
        namespace = current.namespace
    return _servers.get(namespace)
