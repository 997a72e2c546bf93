"""One task that a client follows: its last state, and the coroutines that wait for it."""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Final, TypeAlias, cast
from weakref import WeakSet

import anyio
import mcp_types as types
from pydantic import TypeAdapter, ValidationError

from mcp_celery.client.errors import (
    AnswerError,
    ClientClosedError,
    InvalidTaskError,
    TaskCancelledError,
    TaskEndedError,
    TaskError,
    TaskFailedError,
    TaskTimeoutError,
)
from mcp_celery.client.retry import LONGEST_BACK_OFF_SECONDS, jittered
from mcp_celery.client.wire import Status, TaskState

DEFAULT_INTERVAL_SECONDS: Final = 1.0
LEAST_INTERVAL_SECONDS: Final = 0.05
MOST_INTERVAL_SECONDS: Final = 3600.0
BACK_OFF: Final = 1.5
MOST_BACK_OFF: Final = 8.0

LEAST_SILENCE_SECONDS: Final = 2.0
"""A pushed task is asked for after this time and half its age without a push: never while it is younger, about six
times in a silent minute, then as often as ``silence_seconds`` says.
"""

TOOL_RESULT: Final[TypeAdapter[Any]] = TypeAdapter(types.CallToolResult)

StatusCallback: TypeAlias = Callable[[TaskState], Awaitable[None] | None]
"""Called with a task's state, each time it has changed."""

logger = logging.getLogger(__name__)


class FollowedTask:
    """A task that one client follows. It is tracked only while it is referenced; once collected, polling ends.

    Args:
        state: Its first state.
        answering: Whether the client's callbacks answer its questions.
        is_open: Whether the client can still learn anything.
        result_type: What its result has to be.

    Attributes:
        state: The newest state.
        revision: How many changes there have been since it is followed.
        failure: Why nothing more will be heard of it, where that is so.
        asked: Keys of questions that have been asked, so that none is asked twice.
        refused: Why an open question gets no answer from this client, by its key.
        due: When to ask for its state next, in the event loop's time.
        is_asking: Whether its state is being asked for.
        is_current: Whether anything was heard since it is pushed.
        is_doubtful: Whether the newest state may be another than the known one, although pushes arrive.
        breaks: How many streams in a row broke before the server pushed a state of it.
        hints_from: From when on a hint of the server has its state asked for at once, in the event loop's time.
        silent_since: When the server stopped to answer, in the event loop's time; None while it answers.
        holders: The handles, and the calls that wait for its result: several where they have one idempotency key.
    """

    def __init__(
        self,
        state: TaskState,
        *,
        answering: bool,
        is_open: Callable[[], bool],
        result_type: TypeAdapter[Any] = TOOL_RESULT,
    ) -> None:
        self.state = state
        self.answering = answering
        self.revision = 0
        self.failure: TaskError | None = None
        self.asked: dict[str, anyio.CancelScope | None] = {}
        self.refused: dict[str, AnswerError] = {}
        self.due = 0.0
        self.is_asking = False
        self.is_current = False
        self.is_doubtful = False
        self.breaks = 0
        self.hints_from = 0.0
        self.silent_since: float | None = None
        self.callbacks: list[StatusCallback] = []
        self.holders: WeakSet[object] = WeakSet()
        self._since = anyio.current_time()
        self._is_open = is_open
        self._back_off = 1.0
        self._changed = anyio.Event()
        self._result_type = result_type
        self._result: Any = None

    @property
    def task_id(self) -> str:
        """The task's id."""
        return self.state.task_id

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will be heard of it."""
        return self.state.is_final or self.failure is not None

    def take(self, state: TaskState) -> bool:
        """Learn a state.

        Args:
            state: What the server reported.

        Returns:
            Whether it is another than the one that was known. Nothing follows a final one.
        """
        if self.state.is_final:
            return False
        known, self.state = self.state, state
        self.refused = {key: error for key, error in self.refused.items() if key in state.input_requests}
        if state.says_the_same_as(known):
            return False
        self.revision += 1
        self._back_off = 1.0
        for callback in self.callbacks:
            self.call(callback)
        self._tell()
        return True

    def fail(self, failure: TaskError) -> None:
        """Learn that nothing more will be heard; what is final stays so."""
        if not self.has_ended:
            self.failure = failure
            self._tell()

    def revive(self) -> None:
        """Learn that more will be heard after all."""
        self.failure = None

    def refuse(self, key: str, reason: str) -> None:
        """Learn that a question gets no answer from this client; one that is no longer asked needs none."""
        if key in self.state.input_requests:
            self.refused[key] = AnswerError(self.task_id, f"question {key!r} of task {self.task_id}: {reason}")
            self._tell()

    def _tell(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    def back_off(self) -> None:
        """Ask less often, until something changes."""
        self._back_off = min(self._back_off * BACK_OFF, MOST_BACK_OFF)

    @property
    def silent_seconds(self) -> float | None:
        """For how long the server has not answered requests about the task; None: it answered the last one."""
        return None if self.silent_since is None else anyio.current_time() - self.silent_since

    @property
    def interval_seconds(self) -> float:
        """How long to wait before asking again: what the server wants, or longer, never shorter."""
        wanted = self.state.poll_interval_ms
        interval = DEFAULT_INTERVAL_SECONDS if wanted is None else wanted / 1000
        interval = min(max(interval, LEAST_INTERVAL_SECONDS), MOST_INTERVAL_SECONDS)
        return max(interval, min(interval * self._back_off, LONGEST_BACK_OFF_SECONDS))

    def pause_seconds(self, silence_seconds: float | None) -> float:
        """How long to wait before asking for its state again.

        Args:
            silence_seconds: How long to wait at most while the server pushes the task; None: it does not.
        """
        pause = self.interval_seconds
        if silence_seconds is not None:
            age = anyio.current_time() - self._since
            pause = max(pause, min(silence_seconds, LEAST_SILENCE_SECONDS + age / 2))
        return jittered(pause)

    async def until(self, happened: Callable[[], bool], awaited: str, timeout: float | None) -> None:  # noqa: ASYNC109
        """Wait for something to be known of the task.

        Args:
            happened: Whether it is known.
            awaited: What is waited for, for the error.
            timeout: How long to wait, in seconds; None: for as long as it takes.

        Raises:
            TaskTimeoutError: It took longer.
            TaskError: It will never be known.
        """
        with anyio.move_on_after(timeout):
            while not happened():
                if self.failure:
                    raise self.failure.with_traceback(None)
                if not self._is_open():
                    raise ClientClosedError(self.task_id)
                await self._changed.wait()
            return
        raise TaskTimeoutError(self.task_id, awaited, timeout or 0)

    async def result(self, timeout: float | None = None) -> Any:  # noqa: ASYNC109
        """The result, as soon as it is there.

        Args:
            timeout: How long to wait, in seconds; None: for as long as it takes.

        Raises:
            TaskError: The task ended without a result, or has not ended in that time.
        """
        await self.until(lambda: self.state.is_final or bool(self.refused), "has not ended", timeout)
        if not self.state.is_final:
            raise next(iter(self.refused.values())).with_traceback(None)
        if self._result is None:
            self._result = result_of(self.state, self._result_type)
        return self._result

    async def wait(self, status: Status | None, timeout: float | None) -> TaskState:  # noqa: ASYNC109
        """A state with this status, or with any final one.

        Raises:
            TaskError: It ended otherwise; or it took longer.
        """
        await self.until(
            lambda: self.state.is_final or self.state.status == status, f"has not become {status or 'final'}", timeout
        )
        if status is not None and self.state.status != status:
            raise ending_of(self.state) or TaskEndedError(
                self.task_id, f"task {self.task_id} ended as {self.state.status}, and will not become {status}"
            )
        return self.state

    async def changes(self, known: int | None = None) -> AsyncGenerator[TaskState]:
        """Each state to the last one; who is slow sees the newest.

        Args:
            known: The revision that is known already; None: begin with the current state.

        Raises:
            TaskError: Nothing more will be heard of it.
        """
        while True:
            await self.until(lambda revision=known: self.revision != revision, "has not changed", None)
            known, state = self.revision, self.state
            yield state
            if state.is_final:
                return

    def call(self, callback: StatusCallback) -> None:
        """Call a sync callback with the current state."""
        try:
            callback(self.state)
        except Exception:
            logger.exception("A callback for task %s raised", self.task_id)

    async def call_for_each(self, callback: StatusCallback, known: int | None) -> None:
        """Call an async callback with each change after a revision that is known already, one after the other."""
        try:
            async for state in self.changes(known):
                try:
                    await cast("Awaitable[None]", callback(state))
                except Exception:
                    logger.exception("A callback for task %s raised", self.task_id)
        except TaskError as error:
            logger.info("Callbacks for task %s end: %s", self.task_id, error)


def is_async(callback: StatusCallback) -> bool:
    """Whether calling it gives something to await."""
    return inspect.iscoroutinefunction(callback) or inspect.iscoroutinefunction(getattr(callback, "__call__", None))  # noqa: B004


def ending_of(state: TaskState) -> TaskError | None:
    """The error that an ended task stands for; None where it completed or has not ended."""
    if state.status == "failed":
        error = state.error
        if error is None:
            return TaskFailedError(
                state.task_id, types.INTERNAL_ERROR, state.status_message or "the server gives no reason"
            )
        return TaskFailedError(state.task_id, error.code, error.message, error.data)
    if state.status == "cancelled":
        return TaskCancelledError(state.task_id, state.status_message)
    return None


def result_of(state: TaskState, result_type: TypeAdapter[Any]) -> Any:
    """The result that an ended task brought with it.

    Raises:
        TaskFailedError: It failed with a JSON-RPC error.
        TaskCancelledError: It was cancelled.
        InvalidTaskError: Its result is of another type.
    """
    if ended := ending_of(state):
        raise ended
    try:
        return result_type.validate_python(state.result, by_name=False)
    except ValidationError:
        raise InvalidTaskError(
            state.task_id, f"the server's result of task {state.task_id} does not fit its request"
        ) from None
