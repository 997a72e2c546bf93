"""The extension ``io.modelcontextprotocol/tasks`` (SEP-2663) as a client reads it.

What a server sends is checked before anything is done with it: unknown statuses, ids, texts and numbers out of bounds.
What a client can do without is left out rather than refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias

import mcp_types as types
from pydantic import (
    AfterValidator,
    AliasPath,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic.alias_generators import to_camel
from typing_extensions import TypeVar

from mcp_celery.client.errors import InvalidTaskError

EXTENSION: Final = "io.modelcontextprotocol/tasks"
PROGRESS_META: Final = "mcp-celery/progress"
MAX_EVENT_BYTES_META: Final = "mcp-celery/max-event-bytes"
"""In the ``_meta`` of ``subscriptions/listen``: the largest notification, in bytes of JSON, that the client takes."""
LONGEST_ID: Final = 1024
LONGEST_MESSAGE: Final = 4096
MOST_QUESTIONS: Final = 256
"""At a time, of one task."""
MOST_MS: Final = 2**53
"""A longer time is taken for this one: an integer of JSON may have more digits than any that can be divided."""

Status = Literal["working", "input_required", "completed", "failed", "cancelled"]
ENDS: Final[frozenset[Status]] = frozenset({"completed", "failed", "cancelled"})

JSON: TypeAlias = dict[str, Any]


def _or_none(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validate(value)
    except ValidationError:
        return None


def _shortened(value: Any) -> str | None:
    return value[:LONGEST_MESSAGE] if isinstance(value, str) else None


Dispensable: Final = WrapValidator(_or_none)
"""Of a field that is left out rather than refused."""
Milliseconds: TypeAlias = Annotated[int, Field(ge=0), AfterValidator(lambda ms: min(ms, MOST_MS))]
"""A time of at most `MOST_MS`."""
_Id = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_ID)]


class Progress(BaseModel):
    """Progress of a task, if its server reports it in numbers, as this package does.

    Attributes:
        progress: How much is done.
        total: How much there is to do; None where the tool does not know.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    progress: float
    total: float | None = None


class TaskState(BaseModel):
    """A task as it was when the server reported it: the ``DetailedTask`` of SEP-2663.

    Attributes:
        task_id: The task's id.
        status: ``working``, ``input_required``, ``completed``, ``failed`` or ``cancelled``; the last three are final.
        status_message: The server's message, at most `LONGEST_MESSAGE` characters of them.
        created_at: When the task was created.
        last_updated_at: When it last changed.
        ttl_ms: How long the server keeps it, from its creation on, in milliseconds; None: without limit, or unknown.
        poll_interval_ms: How often the server wants to be polled, in milliseconds; None if it does not say.
        progress: Its progress, if the server reports it in numbers.
        input_requests: The open questions by their keys, as the server sent them.
        result: The ``CallToolResult`` of a completed task, as the server sent it.
        error: The JSON-RPC error of a failed task.
    """

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True)

    task_id: _Id
    status: Status
    status_message: Annotated[str | None, BeforeValidator(_shortened)] = None
    created_at: Annotated[AwareDatetime | None, Dispensable] = None
    last_updated_at: Annotated[AwareDatetime | None, Dispensable] = None
    ttl_ms: Annotated[Milliseconds | None, Dispensable] = None
    poll_interval_ms: Annotated[Milliseconds | None, Dispensable] = None
    progress: Annotated[Progress | None, Field(validation_alias=AliasPath("_meta", PROGRESS_META)), Dispensable] = None
    input_requests: dict[_Id, JSON] = Field(default={}, max_length=MOST_QUESTIONS)
    result: JSON | None = None
    error: Annotated[types.ErrorData | None, Dispensable] = None

    @model_validator(mode="after")
    def _check_result(self) -> TaskState:
        if self.status == "completed" and self.result is None:
            raise ValueError("a completed task needs a result")
        return self

    @property
    def is_final(self) -> bool:
        """Whether nothing comes after this."""
        return self.status in ENDS

    @property
    def lacks_result(self) -> bool:
        """Whether the server has to be asked for the result, or the error, in addition."""
        return False

    def says_the_same_as(self, other: TaskState) -> bool:
        """Whether nothing but the time differs: some servers say the current one each time they are asked."""
        return self.model_copy(update={"last_updated_at": other.last_updated_at}) == other

    def is_older_than(self, other: TaskState) -> bool:
        """Whether this was the task's state before another; False where the times do not show it."""
        mine, others = self.last_updated_at, other.last_updated_at
        return mine is not None and others is not None and mine < others


StateT = TypeVar("StateT", bound=TaskState, default=TaskState)


class CreatedTask(types.Result):
    """The answer to ``tools/call`` where the server creates a task."""

    model_config = ConfigDict(extra="allow")

    result_type: Literal["task"] = "task"
    task_id: str

    def state(self) -> TaskState:
        """The task's first state.

        A task that has ended already, because the request was sent before, is taken for a working one: its result comes
        with ``tasks/get``.

        Raises:
            InvalidTaskError: What the server sent is not a task.
        """
        sent = self.model_dump(by_alias=True, mode="json")
        if sent.get("status") in ("completed", "failed") and not sent.keys() & {"result", "error"}:
            sent["status"] = "working"
        return parse_task(sent)


class AnyTask(types.NotificationParams):
    """Parameters of ``notifications/tasks``, to be checked by `parse_task`."""

    model_config = ConfigDict(extra="allow")


class AnyResult(types.Result):
    """The result of a ``tasks/*`` method, to be checked by `parse_task`."""

    model_config = ConfigDict(extra="allow")


class TaskRequest(types.Request[JSON, str]):
    """A ``tasks/*`` request. On HTTP its ``Mcp-Name`` header is the task's id."""

    params: JSON
    name_param = "taskId"


def parse_task(sent: Any, task_id: str | None = None, model: type[StateT] = TaskState) -> StateT:
    """Check a task that a server sent.

    Args:
        sent: The task as it was on the wire.
        task_id: Whose state it has to be, None for any.
        model: How the connection's revision encodes it.

    Returns:
        Its state.

    Raises:
        InvalidTaskError: It breaks the revision; the text names the field, and nothing of its content.
    """
    try:
        state = model.model_validate(sent, by_name=False)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"][:1]) or "task"
        raise InvalidTaskError(task_id or "", f"the server sent an invalid task: {field}: {first['msg']}") from None
    if task_id is not None and state.task_id != task_id:
        raise InvalidTaskError(task_id, f"the server answered with another task than {task_id}")
    return state
