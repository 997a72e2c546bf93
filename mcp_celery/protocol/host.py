"""The protocol's view of its server, and how it turns a request for a task into a submission."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from mcp_celery.components.declarations import DeclaredComponents
from mcp_celery.config import Foreground, TaskConfig, TaskMeta
from mcp_celery.context import TaskContextSnapshot
from mcp_celery.engine import Caller, JSONObject, Submission, TaskEngine
from mcp_celery.errors import InvalidRequestError, TaskModeError
from mcp_celery.keys import TaskType
from mcp_celery.protocol.question_delivery import Turns
from mcp_celery.protocol.shared_wire import IMMEDIATE_RESPONSE


@dataclass(frozen=True, slots=True)
class Polling:
    """How clients that know no tasks follow one, where the server has tools for it.

    Attributes:
        after: Seconds that a call's first answer waits for the end.
        prefix: What the tools' names begin with.
    """

    after: float
    prefix: str

    @property
    def status(self) -> str:
        """Name of the tool that shows how a task stands."""
        return f"{self.prefix}task_status"

    @property
    def result(self) -> str:
        """Name of the tool that waits for a task's result."""
        return f"{self.prefix}task_result"

    @property
    def cancel(self) -> str:
        """Name of the tool that cancels a task."""
        return f"{self.prefix}task_cancel"

    @property
    def names(self) -> tuple[str, str, str]:
        """Names of the three tools."""
        return self.status, self.result, self.cancel


@dataclass(slots=True)
class TaskHost:
    """The protocol's view of its server.

    Attributes:
        engine: Gives the running event loop's engine.
        components: The server's components, with what they declare.
        foreground: Where tools run for callers that get no task, where they do not say.
        header_names: Lower-case names of the request headers that a job may see.
        max_listen_tasks: How many task ids one subscription may name.
        max_push_bytes: Size of the largest notification of a task, as JSON, where its client names no other.
        polling: How clients that know no tasks follow one, None where they do not.
        turns: Whose turn it is to ask a question, of all who ask in this process.
    """

    engine: Callable[[], TaskEngine]
    components: DeclaredComponents
    foreground: Foreground
    header_names: frozenset[str]
    max_listen_tasks: int
    max_push_bytes: int
    polling: Polling | None = None
    turns: Turns = field(default_factory=Turns)

    def polling_of(self, config: TaskConfig) -> Polling | None:
        """How a client that knows no tasks follows one of a tool, None where it gets none."""
        stays_here = config.mode == "optional" and config.foreground == "server"
        return self.polling if config.supports_tasks() and not stays_here else None

    async def immediate_response(self, tool: str) -> str | None:
        """The tool's text for the model while its task runs, None for none."""
        component = (await self.components.find("tool", tool)).component
        return None if component is None else component.meta.get(IMMEDIATE_RESPONSE)

    async def submission(
        self, task_type: TaskType, snapshot: TaskContextSnapshot, caller: Caller, meta: TaskMeta
    ) -> Submission:
        """A request that asks to become a task, checked.

        Args:
            task_type: Kind of the component.
            snapshot: The request; its parameters name the component.
            caller: Who asks.
            meta: What it asks about the task.

        Raises:
            InvalidRequestError: There is no such component, or it refuses the arguments.
            TaskModeError: It does not run as a task.
        """
        component = component_of(task_type, snapshot.params)
        arguments: JSONObject = snapshot.params.get("arguments") or {}
        found = await self.components.find(task_type, component, snapshot.meta)
        refusal = await found.refusal(arguments)
        if refusal is None and not found.config.supports_tasks():
            raise TaskModeError(f"{task_type.capitalize()} {component!r} does not run as a task")
        if refusal is not None:
            raise InvalidRequestError(refusal)
        if arguments:
            declared = found.declared_arguments(arguments)
            snapshot = replace(snapshot, params={**snapshot.params, "arguments": declared})
        return Submission(
            caller=caller,
            task_type=task_type,
            component=component,
            config=found.config,
            snapshot=snapshot,
            ttl_ms=meta.ttl,
            declared_as=found.declared_as,
            job_name=meta.fn_key,
            fingerprint=found.fingerprint,
        )


def component_of(task_type: TaskType, params: JSONObject) -> str:
    """The component that a request's parameters name."""
    return str(params["uri" if task_type == "resource" else "name"])
