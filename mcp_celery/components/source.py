"""The port for the server that owns the components: all that this package needs of an MCP server.

``MCPServerSource`` (``mcp_server_source.py``) implements it for the SDK's ``MCPServer``. Another kind of server needs
another implementation, which ``CeleryTasks.install`` takes, and no other change.

Looking components up is asynchronous, because a registry may have to wait: FastMCP's asks its providers, and servers
that are mounted in it. Declaring them is synchronous, because it happens while modules are imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol, cast

from mcp.server.context import HandlerResult, ServerMiddleware, ServerRequestContext
from mcp.server.extension import Extension, RequestHandler
from mcp.server.lowlevel.server import Server
from mcp.server.mcpserver.utilities.func_metadata import ArgModelBase, FuncMetadata
from mcp_types import ToolAnnotations
from pydantic import BaseModel
from starlette.applications import Starlette

from mcp_celery.base_exceptions import causes_of
from mcp_celery.config import TaskConfig
from mcp_celery.engine import JSONObject
from mcp_celery.keys import TaskType

RequestMeta = Mapping[str, Any]
"""The ``_meta`` of a request. Some servers let a client name a component's version there."""
Running = Callable[[], AbstractAsyncContextManager[None]]
"""Holds the connections to the store and the broker while the context is entered."""


class Component(Protocol):
    """A tool, prompt, resource or resource template of a server."""

    @property
    def task_type(self) -> TaskType:
        """Its kind; a resource template is a ``resource``."""
        ...

    @property
    def identifier(self) -> str:
        """The declared identifier, after which its jobs are named: its name, URI or URI template."""
        ...

    @property
    def config(self) -> TaskConfig | None:
        """Its own declaration about running as a task; None where its kind of server has no place for one."""
        ...

    @property
    def function(self) -> Callable[..., Any] | None:
        """The function that its jobs call; None where it has none."""
        ...

    @property
    def meta(self) -> JSONObject:
        """The ``_meta`` of its declaration, empty where it has none."""
        ...

    @property
    def version(self) -> str | None:
        """Its declared version; None where it declares none, or its kind of server has no place for that."""
        ...

    @property
    def input_schema(self) -> JSONObject:
        """JSON schema of its arguments, with their defaults, from which its fingerprint is made
        (:mod:`mcp_celery.components.fingerprint`). The same object each time, as long as it does not change.
        """
        ...

    @property
    def may_be_repeated(self) -> bool:
        """Whether it hints that it only reads, or that a second call with the same arguments changes nothing more."""
        ...

    @property
    def returns_questions(self) -> bool:
        """Whether it declares that it may return questions instead of a result."""
        ...

    @property
    def can_ask_first(self) -> bool:
        """Whether it can ask before it does its work."""
        ...

    async def refusal(self, arguments: JSONObject) -> str | None:
        """Check the arguments of a request as its server does in the foreground, without running the component.

        Args:
            arguments: From the wire.

        Returns:
            Why it would not take them, in one line without their values; None where it would.

        Raises:
            MCPError: A validator's own answer, as in the foreground.
        """
        ...

    def declared_arguments(self, arguments: JSONObject) -> JSONObject:
        """Leave out the arguments that it ignores, so that they are not stored.

        Args:
            arguments: From the wire.

        Returns:
            Those that its function, or a validator of its, can see.
        """
        ...


class JobChannel(Protocol):
    """Connects the component of a job with its task, besides the SDK's request context."""

    def check(self) -> None:
        """Stop a component whose task has ended.

        Raises:
            asyncio.CancelledError: The task has ended.
        """
        ...

    async def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """Report the component's progress."""
        ...


class ComponentRaised(Exception):  # noqa: N818 - an outcome, not an error
    """The component raised an exception that is Celery's business, and no result.

    Args:
        reason: What it raised.
    """

    def __init__(self, reason: Exception) -> None:
        super().__init__(type(reason).__name__)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A request that a job serves. ``get_task_context()`` gives the task, the job and the creating request.

    Attributes:
        context: For the SDK's handlers. Progress, log messages and questions on it reach the task.
        params: The request's parameters, validated.
        handler: The low-level server's handler of the request's method.
        channel: The same task.
        let_through: Exceptions of the component that are Celery's business: it retries the job, or ends it.
    """

    context: ServerRequestContext[Any, Any]
    params: BaseModel
    handler: RequestHandler
    channel: JobChannel
    let_through: tuple[type[Exception], ...]

    def require_result(self, error: Exception) -> None:
        """Refuse to make a result of an exception that is Celery's business.

        Args:
            error: What the component raised, or what its server made of that.

        Raises:
            ComponentRaised: It is in ``let_through``, or was caused by such an exception.
        """
        for cause in causes_of(error):
            # Its type, since isinstance() asks the exception, too.
            if issubclass(type(cause), self.let_through):
                raise ComponentRaised(cast(Exception, cause)) from None


class ComponentSource(Protocol):
    """A server that owns components."""

    @property
    def server(self) -> Any:
        """The server object that its authors hold, which ``get_task_server()`` gives. It is hashable."""
        ...

    @property
    def name(self) -> str:
        """The server's name, the same in each process."""
        ...

    @property
    def lowlevel(self) -> Server[Any]:
        """The SDK's low-level server that handles the requests."""
        ...

    @property
    def log_level(self) -> str:
        """The log level of ``mcp-celery serve``, for example ``INFO``."""
        ...

    @property
    def authenticates(self) -> bool:
        """Whether the server's HTTP endpoint requires an access token."""
        ...

    @property
    def is_resumable(self) -> bool:
        """Whether a client that lost the stream of its answer can resume it: the server has an event store."""
        ...

    @property
    def has_one_lifespan(self) -> bool:
        """Whether its lifespan is entered once for a process, whatever event loops enter it.

        Jobs in the server's own process then run on the server's event loop, to which belongs what the lifespan opened.
        """
        ...

    async def components(self) -> Sequence[Component]:
        """List every component, those of mounted servers included. A component with versions is listed once for each.

        The version that a request gets by default comes first. The versions share one Celery job.
        """
        ...

    async def find(self, task_type: TaskType, identifier: str, meta: RequestMeta | None = None) -> Component | None:
        """Find the component that a request names.

        Args:
            task_type: Its kind.
            identifier: Its name, or a resource's URI.
            meta: The request's ``_meta``; None where only its component is known: then of versions the default one.

        Returns:
            The component: for a URI without a resource, the template that it matches. None if nothing matches.
        """
        ...

    def has_tool(self, name: str) -> bool:
        """Whether a tool of that name was added to the server itself."""
        ...

    def add_tool(
        self,
        function: Callable[..., Any],
        name: str,
        *,
        description: str,
        annotations: ToolAnnotations | None = None,
        structured_output: bool | None = None,
        arguments: type[ArgModelBase] | None = None,
    ) -> FuncMetadata:
        """Add a tool.

        Args:
            function: Called in the foreground. A parameter that is annotated as the SDK's ``Context`` is given one,
                of which ``request_context`` and ``input_responses`` are used. What it raises as the SDK's
                ``ToolError`` is for the model.
            name: A name that no tool has.
            description: For the model.
            annotations: The tool's hints.
            structured_output: As for ``MCPServer.add_tool``.
            arguments: A model of the arguments. None: made from the function's signature.

        Returns:
            How the tool's arguments are validated, and its results converted.

        Raises:
            InvalidSignature: The function has parameters that no tool may have; nothing was added.
            PydanticUserError: No schema can be made of the signature or the model; nothing was added.
            PydanticUndefinedAnnotation: The same.
        """
        ...

    def fit(
        self, extension: Extension, middleware: Sequence[ServerMiddleware[Any]], running: Running, *, max_streams: int
    ) -> None:
        """Add tasks to the server, before it serves.

        Where its token verifier leaves a token's subject to the claims, it names the subject from now on
        (:class:`mcp_celery.protocol.SubjectNamingVerifier`).

        Args:
            extension: Its methods, and its interceptor of ``tools/call``.
            middleware: For every revision, the outermost first.
            running: Entered before the server's own lifespan, and left after it.
            max_streams: The most that its handler of ``subscriptions/listen`` may serve at a time; those that are too
                many are refused before.

        Raises:
            ValueError: The server has the extension already.
        """
        ...

    def lifespan(self) -> AbstractAsyncContextManager[Any]:
        """The server's lifespan, for a process that runs jobs and serves no clients. It gives the handlers' state."""
        ...

    async def run(self, request: JobRequest) -> HandlerResult:
        """Run a component in a job, as the server's own handler runs it in the foreground.

        Extensions' interceptors are included, so that a tool behaves in a job as in a call.

        Args:
            request: The request.

        Returns:
            What the handler returns: a result, or questions that the component has before it can give one.

        Raises:
            ComponentRaised: The component raised one of the exceptions that the request lets through.
            MCPError: The request ended in a JSON-RPC error.
            Exception: Whatever else would leave the handler in the foreground.
        """
        ...

    def http_app(
        self,
        *,
        path: str,
        max_body_bytes: int,
        max_sessions: int | None,
        session_idle_seconds: float | None,
        stateless: bool,
    ) -> Starlette:
        """Make the ASGI app that serves the server over Streamable HTTP, without checks of ``Host`` and ``Origin``.

        Args:
            path: Path of the MCP endpoint.
            max_body_bytes: Size of the largest request body.
            max_sessions: Sessions at a time, None for any number.
            session_idle_seconds: After how long an idle session ends, None for never.
            stateless: Whether each request of 2025-11-25 stands alone, without a session. False: as the server's own
                configuration says.

        Returns:
            An app whose lifespan enters the server's.
        """
        ...

    def run_stdio(self) -> None:
        """Serve the client on standard input and output until it has gone."""
        ...
