"""FastMCP's private names, all in this module (4.1 to 4.2). Provisional seam of FastMCP.

Public ways to the same would let this module go: the low-level server, the SDK's context behind FastMCP's, which call
is the client's own, the tools that were added to a server itself (without waiting), the server behind a mounted tool,
the state that a job needs bound, and a hook for ``Progress()``.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any, Final, cast

from fastmcp import FastMCP
from fastmcp.server import dependencies
from fastmcp.server.context import Context
from fastmcp.server.providers.fastmcp_provider import FastMCPProviderTool
from fastmcp.tools.base import Tool, ToolResult
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import Server
from mcp.server.session import ServerSession

from mcp_celery.components.source import JobChannel
from mcp_celery.protocol import SubjectNamingVerifier

_STATE_PREFIX: Final = "_fastmcp_state_prefix"
"""In ``Connection.state``: what FastMCP calls the session, in ``ctx.session_id`` and in the keys of its state."""

_asking: ContextVar[bool] = ContextVar("mcp_celery_fastmcp_asking", default=False)
_channel: ContextVar[JobChannel | None] = ContextVar("mcp_celery_fastmcp_channel", default=None)


def lowlevel_of(server: FastMCP[Any]) -> Server[Any]:
    """The SDK's low-level server."""
    return server._mcp_server  # pyright: ignore[reportPrivateUsage]


def has_generated_name(server: FastMCP[Any]) -> bool:
    """Whether FastMCP made the server's name, which then differs from process to process."""
    return re.fullmatch(rf"{re.escape(type(server).__name__)}-[0-9a-f]{{4}}", server.name) is not None


def name_subjects(server: FastMCP[Any]) -> None:
    """Let the server's auth provider name the subject that a token has only in its claims.

    The SDK binds sessions and request states to the subject. FastMCP's HTTP apps ask the provider itself, so its method
    is replaced on this one object.
    """
    provider: Any = server.auth
    if provider is not None and not isinstance(getattr(provider.verify_token, "__self__", None), SubjectNamingVerifier):
        asked: Any = SimpleNamespace(verify_token=provider.verify_token)
        provider.verify_token = SubjectNamingVerifier(asked).verify_token


def request_of(context: Context) -> ServerRequestContext[Any, Any] | None:
    """The SDK's context of the request that FastMCP serves, None where it serves none."""
    found = context.request_context
    return None if found is None else found._srctx  # pyright: ignore[reportPrivateUsage]


def is_call_of_client() -> bool:
    """Whether the tool that is being called is the one that the client's request names, and no other tool calls it."""
    return dependencies._is_client_tool_call()  # pyright: ignore[reportPrivateUsage]


def behind_mount(tool: Tool) -> tuple[FastMCP[Any], str] | None:
    """The server that a mounted tool is of, and its name there; None for a tool that is not mounted."""
    if not isinstance(tool, FastMCPProviderTool):
        return None
    return tool._server, cast(str, tool._original_name)  # pyright: ignore[reportPrivateUsage]


def own_tools(server: FastMCP[Any], name: str) -> list[Tool]:
    """The tools of a name, one for each version, that were added to the server itself."""
    components = server._local_provider._components.values()  # pyright: ignore[reportPrivateUsage]
    return [one for one in components if isinstance(one, Tool) and one.name == name]


def hides_errors(server: FastMCP[Any]) -> bool:
    """Whether clients see that a tool of the server raised, and not what."""
    return server._mask_error_details  # pyright: ignore[reportPrivateUsage]


async def run_as_server_does(tool: Tool, arguments: dict[str, Any]) -> ToolResult:
    """Run a tool as its server does, after its middleware."""
    return await tool._run(arguments)  # pyright: ignore[reportPrivateUsage]


def name_session(session: ServerSession, name: str, *, anew: bool = False) -> None:
    """Let FastMCP call a session by a name.

    Args:
        session: The session.
        name: Its name.
        anew: Whether it may have another name already.
    """
    state = session._connection.state  # pyright: ignore[reportPrivateUsage]
    if anew or _STATE_PREFIX not in state:
        state[_STATE_PREFIX] = name


@contextmanager
def bound_for_job(channel: JobChannel, headers: Mapping[str, str] | None, session_id: str) -> Generator[None]:
    """Bind what FastMCP binds for a task of Docket's.

    Args:
        channel: Where ``Progress()`` reports.
        headers: Those of the task's creating request, None for none.
        session_id: What FastMCP calls the session.
    """
    values: dict[ContextVar[Any], Any] = {
        dependencies._background_task_headers: None if headers is None else dict(headers),  # pyright: ignore[reportPrivateUsage]
        dependencies._background_task_session_id: session_id,  # pyright: ignore[reportPrivateUsage]
        _channel: channel,
    }
    with _bound(values):
        yield


@contextmanager
def sharing_dependencies(server: FastMCP[Any]) -> Generator[None]:
    """Let ``Shared(…)`` be what the server's lifespan shares.

    Enter it inside of a context: early releases of 4.1 give each context dependencies of its own.

    Args:
        server: The server that the job's worker has imported.
    """
    with _bound(server._shared_context_snapshot or {}):  # pyright: ignore[reportPrivateUsage]
        yield


@contextmanager
def _bound(values: Mapping[ContextVar[Any], Any]) -> Generator[None]:
    with ExitStack() as stack:
        for variable, value in values.items():
            stack.callback(variable.reset, variable.set(value))
        yield


class JobContext(Context):
    """FastMCP's context of a task. Unlike that of Docket's tasks it can ask."""

    @property
    def is_background_task(self) -> bool:
        return not _asking.get()  # FastMCP refuses to ask in a background task

    async def elicit(self, *args: Any, **options: Any) -> Any:
        token = _asking.set(True)
        try:
            return await super().elicit(*args, **options)
        finally:
            _asking.reset(token)


class _ReportedProgress(dependencies.InMemoryProgress):
    """FastMCP's ``Progress()`` where there is no Docket; in a job it reports to the task."""

    async def set_total(self, total: int) -> None:
        await super().set_total(total)
        await self._report()

    async def increment(self, amount: int = 1) -> None:
        await super().increment(amount)
        await self._report()

    async def set_message(self, message: str | None) -> None:
        await super().set_message(message)
        await self._report()

    async def _report(self) -> None:
        if (channel := _channel.get()) is not None:
            await channel.progress(self._current or 0, self._total, self._message)


def report_progress_dependencies() -> None:
    """Let ``Progress()`` report to the task of a job. Elsewhere it does what it did.

    FastMCP has no hook for it: its ``Progress`` makes an ``InMemoryProgress``, which it finds by this name.
    """
    dependencies.InMemoryProgress = _ReportedProgress  # pyright: ignore[reportPrivateImportUsage]
