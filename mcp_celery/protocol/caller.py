"""The caller of a request, read from the SDK's context. Provisional seam: the session id of a connection."""

from __future__ import annotations

import functools
import json
import logging
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Network, ip_address
from typing import Final, cast

from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.connection import Connection
from mcp.shared.exceptions import MCPError
from opentelemetry.propagate import inject
from pydantic import BaseModel
from starlette.requests import Request

from mcp_celery.context import TaskContextSnapshot, get_task_context, get_task_issuer, get_task_scope
from mcp_celery.engine import Caller, JSONObject, Submission, idempotency_of
from mcp_celery.errors import LimitExceededError, McpCeleryError, StoredDataError
from mcp_celery.protocol.revision import RequestContext
from mcp_celery.protocol.revisions import revision_of
from mcp_celery.protocol.shared_wire import IDEMPOTENCY_HEADER, IDEMPOTENCY_KEY, ONLY_AS_TASK
from mcp_celery.telemetry.tasks import count_refusal

logger = logging.getLogger(__name__)

_SESSION: Final = "mcp_celery/session"
"""In ``Connection.state``: the name of a connection that is a session by itself."""
_PROCESS: Final = secrets.token_urlsafe(32)
"""Tells this process from every other."""
_HOME_BITS: Final = 64
"""Prefix length that identifies an IPv6 client, which chooses the remaining 64 bits itself."""


def caller_of_request(ctx: RequestContext | None) -> Caller:
    """The current request's caller; asked anew for each request, never remembered with a session.

    Args:
        ctx: The request, None for what the server does by itself.
    """
    scope, issuer = get_task_scope(), get_task_issuer()
    session = None if ctx is None else session_of(ctx)
    trusted = ctx is None or get_task_context() is not None
    return replace(_caller(ctx, scope, issuer, session), token_scopes=None if trusted else granted_scopes())


def granted_scopes() -> frozenset[str]:
    """The OAuth scopes of the current request's token; none where there is no token."""
    token = get_access_token()
    return frozenset() if token is None else frozenset(token.scopes)


def _caller(ctx: RequestContext | None, scope: str | None, issuer: str | None, session: str | None) -> Caller:
    if scope is not None:
        return Caller(scope, issuer, session, json.dumps(["scope", scope, issuer]))
    if session is not None or ctx is None:
        return Caller(None, issuer, session, None if session is None else json.dumps(["session", session]))
    if get_task_context() is not None:
        return Caller(None, issuer)  # a job, whose client is elsewhere
    if ctx.request is None:
        return Caller(None, issuer, requestor=json.dumps(["process", _PROCESS]))  # stdio, in memory: it has one client
    client = getattr(ctx.request, "client", None)
    requestor = None if client is None else _requestor_at(client.host)
    return Caller(None, issuer, requestor=requestor, is_shared=True)


@functools.lru_cache(maxsize=1024)
def _requestor_at(host: str) -> str:
    return json.dumps(["address", _home_of(host)])


def _home_of(host: str) -> str:
    """A client's address; of IPv6 the network that it has all addresses of.

    >>> _home_of("2001:db8:1:2:3:4:5:6"), _home_of("192.0.2.7"), _home_of("::ffff:192.0.2.7"), _home_of("a name")
    ('2001:db8:1:2::', '192.0.2.7', '192.0.2.7', 'a name')
    """
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, IPv4Address):
        return str(address)
    mapped = address.ipv4_mapped
    return str(mapped or IPv6Network((address, _HOME_BITS), strict=False).network_address)


def connection_of(ctx: RequestContext) -> Connection:
    """The connection that a request came in on."""
    return ctx.session._connection  # pyright: ignore[reportPrivateUsage] - the SDK 2.3.0 has no public way to it


def session_of(ctx: RequestContext) -> str | None:
    """The session that a request belongs to.

    Returns:
        The HTTP session; where a connection is the session (stdio, in memory) a name of that connection; None where
        requests stand alone: stateless HTTP, and revisions without sessions. In a job: that of its creating request.
    """
    if (job := get_task_context()) is not None:
        return job.snapshot.session_id
    connection = connection_of(ctx)
    if not revision_of(ctx).has_sessions or not connection.has_standalone_channel:
        return None
    return connection.session_id or connection.state.setdefault(_SESSION, secrets.token_urlsafe(32))


async def has_left(ctx: RequestContext) -> bool:
    """Whether a request's client has dropped the HTTP exchange that waits for its answer.

    Over HTTP the SDK does not notify every handler: a session goes on without the exchange. Where a request has none of
    its own (stdio, in memory, SSE with a second endpoint) its handler ends with the connection, and this is False.
    """
    connection = connection_of(ctx)
    if connection.has_standalone_channel and connection.session_id is None:
        return False
    return isinstance(ctx.request, Request) and await ctx.request.is_disconnected()


def snapshot_of(ctx: RequestContext, params: JSONObject, header_names: frozenset[str]) -> TaskContextSnapshot:
    """What a job needs to know of the request that creates it.

    Args:
        ctx: The request.
        params: Its parameters, without ``_meta``.
        header_names: Lower-case names of the headers that a job may see.
    """
    session = ctx.session
    client = session.client_params
    meta = dict(ctx.meta or {})
    trace: dict[str, str] = {}
    inject(trace)  # the SDK's span of this request, or its parent where no tracing is set up
    return TaskContextSnapshot.capture(
        protocol_version=ctx.protocol_version,
        params=params,
        request_id=ctx.request_id,
        client_info=None if client is None else _dump(client.client_info),
        client_capabilities=_dump(session.client_capabilities),
        headers=getattr(ctx.request, "headers", None),
        header_names=header_names,
        session_id=session_of(ctx),
        progress_token=cast("str | int | None", meta.get("progress_token")),
        traceparent=trace.get("traceparent"),
        tracestate=trace.get("tracestate"),
        meta={name: value for name, value in meta.items() if not _is_carried_apart(name)} or None,
    )


_CARRIED_APART: Final = frozenset({"progress_token", "traceparent", "tracestate", IDEMPOTENCY_KEY, ONLY_AS_TASK})


def _is_carried_apart(name: str) -> bool:
    """Whether a key of ``_meta`` is MCP's own, has a place of its own in the snapshot, or is not for the job."""
    return name.startswith("io.modelcontextprotocol/") or name in _CARRIED_APART


def once(ctx: RequestContext, submission: Submission) -> Submission:
    """A submission with its request's idempotency key, where it has one.

    Args:
        ctx: The request.
        submission: The same request as a task.

    Raises:
        InvalidIdempotencyKeyError: The key cannot be used.
    """
    key: object = dict(ctx.meta or {}).get(IDEMPOTENCY_KEY)
    if key is None:
        headers = getattr(ctx.request, "headers", None)
        header: str | None = None if headers is None else headers.get(IDEMPOTENCY_HEADER)
        key = None if header is None else header.removeprefix('"').removesuffix('"')
    return submission if key is None else replace(submission, idempotency=idempotency_of(key, submission))


def _dump(model: BaseModel | None) -> JSONObject | None:
    return None if model is None else model.model_dump(by_alias=True, mode="json", exclude_none=True)


@contextmanager
def as_rpc_errors() -> Generator[None]:
    """Let this package's errors leave as JSON-RPC errors with their code."""
    try:
        yield
    except McpCeleryError as error:
        if isinstance(error, StoredDataError):
            logger.error("a request for a task was answered with an error: %s", error.reason)
        if isinstance(error, LimitExceededError):
            count_refusal(error.limit)
        raise MCPError(error.code, str(error), error.data) from error
