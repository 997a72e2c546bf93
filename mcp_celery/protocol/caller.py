"""What a request says of its caller, read from the SDK's context. Provisional seam: the session id of a connection."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import MCP_NAME_HEADER, decode_header_value
from mcp_types import HEADER_MISMATCH
from pydantic import BaseModel

from mcp_celery.context import TaskContextSnapshot, get_task_issuer, get_task_scope, provide_token_source
from mcp_celery.engine import Caller, JSONObject
from mcp_celery.errors import McpCeleryError

RequestContext = ServerRequestContext[Any, Any]

provide_token_source(get_access_token)


def caller_of_request() -> Caller:
    """The current request's caller; asked anew for each request, never remembered with a session."""
    return Caller(get_task_scope(), get_task_issuer())


def declares(ctx: RequestContext, extension: str) -> bool:
    """Whether this request's client declares an extension."""
    capabilities = ctx.session.client_capabilities
    return bool(capabilities and capabilities.extensions and extension in capabilities.extensions)


def require_matching_name(ctx: RequestContext, task_id: str) -> None:
    """Refuse a ``Mcp-Name`` header that names another task than the body (SEP-2243). A missing one is tolerated.

    Raises:
        MCPError: -32020.
    """
    headers = getattr(ctx.request, "headers", None)
    header: str | None = None if headers is None else headers.get(MCP_NAME_HEADER)
    if header is not None and decode_header_value(header) != task_id:
        raise MCPError(
            HEADER_MISMATCH, f"{MCP_NAME_HEADER} header does not match the request body's 'taskId' parameter"
        )


def snapshot_of(ctx: RequestContext, header_names: frozenset[str]) -> TaskContextSnapshot:
    """What a job needs to know of the request that creates it.

    Args:
        ctx: The request.
        header_names: Lower-case names of the headers that a job may see.
    """
    session = ctx.session
    client = session.client_params
    connection = session._connection  # pyright: ignore[reportPrivateUsage] - the only way to its session id in 2.3.0
    return TaskContextSnapshot.capture(
        protocol_version=ctx.protocol_version,
        request_id=ctx.request_id,
        client_info=None if client is None else _dump(client.client_info),
        client_capabilities=_dump(session.client_capabilities),
        headers=getattr(ctx.request, "headers", None),
        header_names=header_names,
        session_id=connection.session_id,
    )


def _dump(model: BaseModel | None) -> JSONObject | None:
    return None if model is None else model.model_dump(by_alias=True, mode="json", exclude_none=True)


@contextmanager
def as_rpc_errors() -> Generator[None]:
    """Let this package's errors leave as JSON-RPC errors with their code."""
    try:
        yield
    except McpCeleryError as error:
        raise MCPError(error.code, str(error)) from error
