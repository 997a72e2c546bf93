"""What sets one protocol revision apart from the others: one object, chosen once for each request (`revisions.py`).

Nothing else in the package compares versions. The server asks this object how to answer a request, and a worker asks it
what a job has to know of the revision of the request that created its task.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Final

from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import ErrorData

from mcp_celery.engine import Caller, JSONObject, TaskEngine, TaskRecord, TaskView
from mcp_celery.protocol.stored_results import Splice

RequestContext = ServerRequestContext[Any, Any]


class Revision(ABC):
    """A protocol revision. What is not abstract here is what a revision without tasks does.

    Args:
        version: Its name on the wire, for example ``2025-11-25``.
    """

    has_sessions: ClassVar[bool]
    """Whether the requests of one connection belong to one session."""
    has_fixed_ttl: ClassVar[bool]
    """Whether a task keeps the time to live that its creation was answered with."""

    has_object_results: ClassVar[bool] = True
    """Whether the structured content of a tool's result has to be an object."""
    short_methods: ClassVar[frozenset[str]] = frozenset()
    """Methods before whose answers nothing is sent to the client, so that over HTTP they need no stream."""

    def __init__(self, version: str) -> None:
        self.version: Final = version

    # --- Which requests become tasks

    def asks_for_task(self, ctx: RequestContext) -> bool:  # noqa: ARG002
        """Whether a request asks to become a task."""
        return False

    def follows_tasks(self, ctx: RequestContext) -> bool:  # noqa: ARG002
        """Whether the server may answer this client's tool calls with tasks that the calls do not ask for."""
        return False

    @abstractmethod
    def refuse_call(self, ctx: RequestContext, tool: str) -> None:
        """Refuse a call of a tool that runs only as a task, for a client that does not follow tasks.

        Raises:
            MCPError: With this revision's code.
        """

    # --- Questions

    def questions_to_return(self, view: TaskView) -> JSONObject:  # noqa: ARG002
        """The open questions that a request is answered with; its client sends the request again with the answers.

        Empty where the server sends questions as requests of its own, while the client waits.
        """
        return {}

    # --- How the SDK answers a request, which a job has to match

    @abstractmethod
    def crash(self, text: str) -> MCPError:
        """The answer to a request whose component raised an exception.

        Args:
            text: The exception's text.
        """

    @abstractmethod
    def dump_error(self, error: ErrorData) -> JSONObject:
        """An error as JSON values, without the fields that the SDK leaves out."""


class TaskRevision(Revision):
    """A revision with tasks."""

    def admit(self, ctx: RequestContext, task_id: str) -> None:
        """Refuse a request about a task whose client must not make it.

        Raises:
            MCPError: It says nothing about whether the task exists.
        """

    @abstractmethod
    def encode_task(self, record: TaskRecord) -> JSONObject:
        """A task without its result."""

    @abstractmethod
    def encode_created(self, record: TaskRecord) -> JSONObject:
        """The answer to a request that became a task."""

    @abstractmethod
    def encode_result(self, view: TaskView) -> JSONObject:
        """The result of a completed task, whichever revision it was made under."""

    @abstractmethod
    async def get_task(
        self, engine: TaskEngine, caller: Caller, task_id: str, splice: Splice | None = None
    ) -> JSONObject:
        """Serve ``tasks/get``.

        Args:
            engine: Has the task.
            caller: Who asks.
            task_id: The task.
            splice: Puts a stored result into the response, where it can; else None.

        Raises:
            McpCeleryError: As ``TaskEngine.get``.
        """

    @abstractmethod
    async def cancel_task(self, engine: TaskEngine, caller: Caller, task_id: str) -> JSONObject:
        """Serve ``tasks/cancel``.

        Raises:
            McpCeleryError: As ``TaskEngine.cancel``.
            MCPError: The revision refuses to cancel a task that has ended.
        """
