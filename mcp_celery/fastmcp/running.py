"""A tool of a FastMCP server in a job, with FastMCP's context and errors, and without its middleware.

The middleware has seen the call in the server, before there was a task. The same holds for the tool's ``auth`` and for
whether the tool is enabled: the job runs what the caller was allowed to call then.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

from fastmcp import FastMCP
from fastmcp.exceptions import NotFoundError
from fastmcp.server.context import reset_transport, set_transport
from fastmcp.server.dependencies import bind_request_context, extract_version_spec
from fastmcp.tools.base import Tool
from mcp.server.context import HandlerResult, ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolRequestParams, RequestParamsMeta
from pydantic import ValidationError

from mcp_celery.components.source import JobRequest
from mcp_celery.context import TaskContext, get_task_context
from mcp_celery.fastmcp.component import is_of, version_named
from mcp_celery.fastmcp.private import (
    JobContext,
    behind_mount,
    bound_for_job,
    hides_errors,
    name_session,
    run_as_server_does,
    sharing_dependencies,
)
from mcp_celery.fastmcp.results import as_error_result, as_wire_result
from mcp_celery.protocol import REQUESTING_REVISION
from mcp_celery.protocol.child_tasks import guarding

Handling = ServerRequestContext[Any, Any]


async def run_tool(server: FastMCP[Any], request: JobRequest) -> HandlerResult:
    """Run a tool in a job.

    Args:
        server: The server that the job's worker has imported.
        request: The request.

    Raises:
        ComponentRaised: As `ComponentSource.run`.
        MCPError: The tool is not there any more, or it raised an error of the protocol.
    """
    task = cast(TaskContext, get_task_context())
    snapshot = task.snapshot
    params = cast(CallToolRequestParams, request.params)
    # Without sessions the rounds of a task still share one state.
    session_id = snapshot.session_id or task.task_id
    ctx = _as_fastmcp_expects(request.context, task)
    name_session(ctx.session, session_id, anew=True)
    with (
        guarding(),
        bound_for_job(request.channel, snapshot.headers, session_id),
        bind_request_context(ctx) as bound,
    ):
        version = extract_version_spec(bound.meta)
        owner, tool = await _tool_of_job(server, params.name, version)
        async with JobContext(owner, ctx.session, task_id=task.task_id, origin_request_id=str(snapshot.request_id)):
            try:
                with sharing_dependencies(server):
                    result = await run_as_server_does(tool, params.arguments or {})
            except (MCPError, ValidationError) as error:
                request.require_result(error)
                raise
            except Exception as error:  # noqa: BLE001 - as FastMCP: whatever a tool raises is its result
                request.require_result(error)
                return as_error_result(tool.name, error, hidden=hides_errors(owner))
        return as_wire_result(result, snapshot.protocol_version)


def _as_fastmcp_expects(ctx: Handling, task: TaskContext) -> Handling:
    """The request's context with what FastMCP reads of it.

    It reads ``_meta`` from the parameters, reports progress where there is a token, and asks at revisions at which
    servers send requests. Headers it reads elsewhere in a task, and what is no request of Starlette's it does not take.
    """
    token = task.snapshot.progress_token
    meta: dict[str, Any] = {"progress_token": task.job_id if token is None else token, **(ctx.meta or {})}
    wire = {name: value for name, value in meta.items() if name != "progress_token"}
    return replace(
        ctx,
        protocol_version=REQUESTING_REVISION.version,
        params={**(ctx.params or {}), "_meta": {**wire, "progressToken": meta["progress_token"]}},
        meta=cast(RequestParamsMeta, meta),
        request=None,
    )


async def _tool_of_job(server: FastMCP[Any], name: str, version: str | None) -> tuple[FastMCP[Any], Tool]:
    """The tool that a job runs, and the server that it is of, below all mounts.

    Raises:
        NotFoundError: It has been removed.
    """
    with _trusted():
        tool = await _find(server, name, version)
        while (mounted := behind_mount(tool)) is not None:
            server, inner = mounted
            tool = await _find(server, inner, tool.version)
        return server, tool


async def _find(server: FastMCP[Any], name: str, version: str | None) -> Tool:
    found = await server.get_tool(name, version_named(version))
    if found is not None:
        return found
    for one in await server.get_tasks():  # it may be enabled for the caller's session alone
        if isinstance(one, Tool) and one.name == name and is_of(one, version):
            return one
    raise NotFoundError(f"Unknown tool: {name!r}")


@contextmanager
def _trusted() -> Generator[None]:
    """Look tools up without checks of the caller's token, as for a client on standard input and output."""
    token = set_transport("stdio")
    try:
        yield
    finally:
        reset_transport(token)
