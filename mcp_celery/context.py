"""The caller's scope, the running task's context, and the snapshot that carries both into a job.

Plain values, context variables and weak maps only: nothing here imports the SDK, Celery or Redis.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Final, Protocol, Self
from weakref import WeakValueDictionary

from mcp_celery.common.formats import FORMAT, UNNUMBERED, NewerFormatError, is_readable
from mcp_celery.keys import TaskKeyParts


class AccessTokenLike(Protocol):
    """The fields of the SDK's ``AccessToken`` that identify a caller."""

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
    @property
    def resource(self) -> str | None: ...
    @property
    def token(self) -> str: ...


_SDK_AUTHENTICATION: Final = "mcp.server.auth.middleware.auth_context"


def _sdk_token() -> AccessTokenLike | None:
    """The access token of the request that the SDK serves.

    The SDK keeps the token in a context variable of its own. Importing the SDK takes a second, and a process that has
    not imported it serves no request, so this function looks for the module instead of importing it.
    """
    authentication = sys.modules.get(_SDK_AUTHENTICATION)
    return None if authentication is None else authentication.get_access_token()


_token_source: Callable[[], AccessTokenLike | None] = _sdk_token


def provide_token_source(source: Callable[[], AccessTokenLike | None]) -> None:
    """Replace the way to the current caller's access token, for servers that keep it elsewhere than the SDK.

    Args:
        source: Returns the current request's token, None for an anonymous caller.
    """
    global _token_source  # noqa: PLW0603 - the one injected seam of this leaf
    _token_source = source


def get_task_scope() -> str | None:
    """The scope of the current caller's tasks. In a job it is the task's own, also if the caller's token has expired
    meanwhile.

    Returns:
        ``client_id|sub`` when the token names a subject, else ``client_id``, else None for an anonymous caller.
    """
    if (current := _current.get()) is not None:
        return current.key.task_scope
    token = _token_source()
    return None if token is None else scope_of(token.client_id, subject_of(token))


def subject_of(token: AccessTokenLike) -> str | None:
    """The resource owner that a token names (``sub``): its ``subject``, else the claim that some verifiers fill alone.

    Every caller of one client would be the same principal without it.
    """
    claimed = (token.claims or {}).get("sub")
    return token.subject or (claimed if isinstance(claimed, str) and claimed else None)


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
    """The issuer that the caller's token names (``iss``). A subject is unique only for its issuer.

    In a job it is that of the task's creating request, also when the caller's token has expired meanwhile.
    """
    if (current := _current.get()) is not None:
        return current.snapshot.issuer
    return _issuer_of(_token_source())


def _issuer_of(token: AccessTokenLike | None) -> str | None:
    issuer = None if token is None else (token.claims or {}).get("iss")
    return None if issuer is None else str(issuer)


@dataclass(frozen=True, slots=True)
class CallerToken:
    """The caller's token. Neither its claims nor the token itself are in its ``repr``.

    Attributes:
        client_id: OAuth client.
        scopes: Granted OAuth scopes.
        subject: Resource owner, unique for its issuer.
        claims: Further claims, ``iss`` among them.
        expires_at: Seconds since the epoch; None, and 0 as for the SDK, when the token does not say.
        resource: The resource that it was issued for (RFC 8707).
        token: The token itself; empty where it was not kept.
    """

    client_id: str
    scopes: list[str] = field(default_factory=list[str])
    subject: str | None = None
    claims: dict[str, Any] | None = field(default=None, repr=False)
    expires_at: int | None = None
    resource: str | None = None
    token: str = field(default="", repr=False)

    @property
    def expired(self) -> bool:
        """Whether the token's own lifetime has ended."""
        return bool(self.expires_at) and self.expires_at <= time.time()


_IN_PROCESS_REVISION: Final = "2025-11-25"
"""The revision that results of tasks submitted in the server's own process are shaped for."""


class _Pipeline(Protocol):
    def set(self, name: str, value: str, *, px: int) -> Any: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskContextSnapshot:
    """The parts of the creating request that its job needs to serve it in the same way. Plain JSON values.

    The job's message carries none of it: the broker, Flower and the logs see a key and an attempt. Its ``repr`` leaves
    out everything that only the job may know.

    Attributes:
        protocol_version: The caller's protocol revision; the result is shaped for it.
        params: Parameters of the MCP request, without ``_meta``.
        request_id: JSON-RPC id of the creating request.
        client_info: ``{"name", "version", …}`` of the client.
        client_capabilities: What the client declared.
        headers: HTTP request headers that the allowlist names, None without HTTP.
        session_id: HTTP session, None where there is none.
        token: The caller, None for an anonymous one.
        progress_token: The client's token for progress, None if it asked for no progress.
        traceparent: The request's place in a distributed trace (W3C Trace Context).
        tracestate: What tracing systems add to it.
        meta: The request's further ``_meta``, without the keys that are reserved to MCP.
        inherited_issuer: Issuer of the caller where a job made the request after the caller's token had expired.
        format: Number of the format that its server reads results in; see `mcp_celery.common.formats`.
    """

    protocol_version: str
    params: dict[str, Any] = field(default_factory=dict[str, Any], repr=False)
    request_id: str | int | None = None
    client_info: dict[str, Any] | None = None
    client_capabilities: dict[str, Any] | None = field(default=None, repr=False)
    headers: dict[str, str] | None = field(default=None, repr=False)
    session_id: str | None = field(default=None, repr=False)
    token: CallerToken | None = field(default=None, repr=False)
    progress_token: str | int | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    meta: dict[str, Any] | None = field(default=None, repr=False)
    inherited_issuer: str | None = None
    format: int = FORMAT

    @property
    def issuer(self) -> str | None:
        """Issuer of the caller, whose task this is; None where its token named none."""
        return self.inherited_issuer if self.token is None else _issuer_of(self.token)

    @classmethod
    def capture(
        cls,
        *,
        protocol_version: str | None = None,
        headers: Mapping[str, str] | None = None,
        header_names: frozenset[str] = frozenset(),
        **values: Any,
    ) -> Self:
        """Take the snapshot of the current request: its caller, and the given attributes.

        >>> TaskContextSnapshot.capture().token is None
        True

        Args:
            protocol_version: The caller's protocol revision. None: in a job that of the task's creating request,
                elsewhere that of requests made in the server's own process.
            headers: HTTP request headers.
            header_names: Lower-case names of the headers to keep.
            **values: The further attributes of the class, except the caller's (``token``, ``inherited_issuer``).
        """
        current = _current.get()
        if protocol_version is None:
            protocol_version = _IN_PROCESS_REVISION if current is None else current.snapshot.protocol_version
        token = _token_source()
        return cls(
            protocol_version=protocol_version,
            headers=None if headers is None else _kept(headers, header_names),
            token=None
            if token is None
            else CallerToken(**{one.name: getattr(token, one.name) for one in fields(CallerToken)}),
            inherited_issuer=get_task_issuer() if token is None else None,
            **values,
        )

    def to_json(self, *, with_token: bool = False) -> str:
        """The snapshot as JSON text, absent values left out. Values of a token's claims that are not JSON become text.

        Args:
            with_token: Whether the token itself is in it; only for a text that is sealed.
        """
        found = {one.name: value for one in fields(self) if (value := getattr(self, one.name)) is not None}
        if self.token is not None:
            found["token"] = asdict(self.token if with_token else replace(self.token, token=""))
        return json.dumps(found, default=str)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read `to_json`'s text, in this form or an earlier one.

        Args:
            text: The text, or its bytes in UTF-8.

        Raises:
            NewerFormatError: A later release wrote it.
            ValueError: The text is not a snapshot.
        """
        try:
            found: dict[str, Any] = {"format": UNNUMBERED, **json.loads(text)}
            if not is_readable(found["format"]):
                raise NewerFormatError("the request's context", found["format"])
            known = {one.name: found[one.name] for one in fields(cls) if one.name in found}
            if (token := known.get("token")) is not None:
                known["token"] = CallerToken(
                    **{one.name: token[one.name] for one in fields(CallerToken) if one.name in token}
                )
            return cls(**known)
        except (TypeError, KeyError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError("not a task context snapshot") from error

    def save(self, pipeline: _Pipeline, key: str, ttl_ms: int) -> None:
        """Queue the write of this snapshot on a Redis pipeline, without the token itself.

        Args:
            pipeline: redis-py's pipeline, or anything with its ``set``.
            key: Where to put it.
            ttl_ms: Its lifetime, that of the task.
        """
        pipeline.set(key, self.to_json(), px=ttl_ms)


def _kept(headers: Mapping[str, str], names: frozenset[str]) -> dict[str, str]:
    """The headers of these names. Of one that was sent several times, the values are joined (RFC 9110, 5.3)."""
    kept: dict[str, str] = {}
    for name, value in ((name.lower(), value) for name, value in headers.items()):
        if name in names:
            kept[name] = f"{kept[name]}, {value}" if name in kept else value
    return kept


@dataclass(frozen=True, slots=True)
class TaskContext:
    """The task and the job that are running.

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

    @property
    def task_id(self) -> str:
        """The id that the client holds."""
        return self.key.client_task_id

    @property
    def task_scope(self) -> str | None:
        """The scope that the task is kept under, None for an anonymous caller's."""
        return self.key.task_scope


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
