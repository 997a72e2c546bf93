"""Containing what user code raises besides ``Exception``, so that it ends one request and not the process.

``sys.exit()`` in a library, a test framework's outcome or trio's ``Cancelled`` reach us as a ``BaseException``. asyncio
raises ``SystemExit`` and ``KeyboardInterrupt`` out of the event loop itself, which then ends with all its jobs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, cast

from mcp_celery.errors import ComponentExitedError

logger = logging.getLogger(__name__)

_REACHING_FURTHER: Final = (SystemExit, KeyboardInterrupt, GeneratorExit)


class ChildTaskExit(BaseException):
    """Takes the place of an exception of user code that would reach further than the asyncio task.

    Args:
        reason: What was raised.
    """

    def __init__(self, reason: BaseException) -> None:
        super().__init__(f"user code raised {type(reason).__name__} in an asyncio task or a thread")
        self.reason = reason


class GuardedCoroutine(Coroutine[Any, Any, Any]):
    """The coroutine of an asyncio task. :class:`ChildTaskExit` replaces what would reach further than the task.

    asyncio raises ``SystemExit`` and ``KeyboardInterrupt`` of a task out of the event loop as well. ``GeneratorExit``
    of what the task waits for, another task or a thread, closes the task's coroutines: they cannot wait any more.

    It is no ``async def``, which would leave the coroutine unawaited where its task is cancelled before it begins.

    Args:
        coroutine: What runs. Its attributes (``cr_frame``, ``__qualname__`` and so on) are the attributes of this one.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine

    def send(self, value: Any, /) -> Any:
        """Go on."""
        try:
            return self._coroutine.send(value)
        except _REACHING_FURTHER as error:
            raise ChildTaskExit(error) from error

    def throw(self, *reason: Any) -> Any:
        """Go on with an exception."""
        if isinstance(reason[0], GeneratorExit):
            reason = (ChildTaskExit(reason[0]),)
        try:
            return self._coroutine.throw(*reason)
        except _REACHING_FURTHER as error:
            raise ChildTaskExit(error) from error

    def close(self) -> None:
        """Raise ``GeneratorExit`` in it."""
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._coroutine.__await__()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coroutine, name)


def _never() -> bool:
    return False


@contextmanager
def containing(what: str, *, cancelled: Callable[[], bool] = _never) -> Generator[None]:
    """Make an ``Exception`` of any ``BaseException`` that user code raises within a coroutine, alone or in a group.

    Args:
        what: Whose code runs, for the log.
        cancelled: Whether a ``CancelledError`` is ours although the running asyncio task was not cancelled.

    Raises:
        ComponentExitedError: User code raised a ``BaseException``, or a ``CancelledError`` although it was not
            cancelled.
        asyncio.CancelledError: It was cancelled, and raised that, alone or in a group with others.
    """
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        if (cancelled() or _is_cancelled()) and (cancellation := _cancellation_in(error)) is not None:
            if cancellation is error:
                raise
            log_raised(logger, "%s was cancelled, and raised %s", what, type(error).__name__)
            # Not the group: the SDK's scopes look for their own exception, and asyncio for that class.
            raise cancellation from None
        if isinstance(error, GeneratorExit) and not _is_running():
            raise  # the coroutine is closed, as the interpreter does with one that is left behind
        name = _name_of(error)
        log_raised(logger, "%s raised %s", what, name)
        raise ComponentExitedError(name) from error


def log_raised(logger: logging.Logger, message: str, *args: object) -> None:
    """Log an error with the traceback of the exception that is being handled, and raise nothing.

    Python asks the exception and those that caused it for their texts, and handlers of the host's may exit the process:
    both is code of users, and what it raises here would get past those who contain it.

    Args:
        logger: The caller's.
        message: As for ``logging.Logger.error``, with its arguments.
    """
    for has_traceback in (True, False):
        with suppress(BaseException):  # the next try is without what raised it, or there is nothing to log to
            logger.error(message, *args, exc_info=has_traceback)
            return


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """An exception, and those that caused it or that were handled when it was raised, each once: there are cycles."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__context__ if one.__cause__ is None else one.__cause__


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions of a group and of the groups in it; an exception that is no group is its own."""
    left = [error]
    while left:
        one = left.pop()
        if isinstance(one, BaseExceptionGroup):
            left += reversed(cast("BaseExceptionGroup[BaseException]", one).exceptions)
        else:
            yield one


def _cancellation_in(error: BaseException) -> asyncio.CancelledError | None:
    return next((one for one in _leaves(error) if isinstance(one, asyncio.CancelledError)), None)


def _name_of(error: BaseException) -> str:
    """The class that the reason names: of a group, that of the first exception in it that is no ``Exception``.

    So an exit of an asyncio task has the same name however the component waits for the task.
    """
    leaves = [one.reason if isinstance(one, ChildTaskExit) else one for one in _leaves(error)]
    exits = [one for one in leaves if not isinstance(one, Exception)]
    named = next((one for one in exits if not isinstance(one, asyncio.CancelledError)), exits[0] if exits else error)
    return type(named).__name__


def text_of_error(error: Exception, form: Callable[[object], str] = str) -> str:
    """The text of an exception of user code; its type's name where it fails to give one.

    Args:
        error: The exception.
        form: Which text: ``str`` or ``repr``.
    """
    try:
        return form(error)
    except BaseException:  # noqa: BLE001 - __str__ and __repr__ of user code raise anything
        return type(error).__name__


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _is_running() -> bool:
    try:
        return asyncio.current_task() is not None
    except RuntimeError:  # no event loop runs
        return False
