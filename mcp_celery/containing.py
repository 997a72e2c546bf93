"""Containing what user code raises besides ``Exception``, so that it ends one request and not the process.

``sys.exit()`` in a library, a test framework's outcome or trio's ``Cancelled`` reach us as a ``BaseException``. asyncio
raises ``SystemExit`` and ``KeyboardInterrupt`` out of the event loop itself, which then ends with all its jobs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager

from mcp_celery.errors import ComponentExitedError

logger = logging.getLogger(__name__)


def _never() -> bool:
    return False


@contextmanager
def containing(what: str, *, cancelled: Callable[[], bool] = _never) -> Generator[None]:
    """Make an ``Exception`` of any ``BaseException`` that user code raises within a coroutine.

    Args:
        what: Whose code runs, for the log.
        cancelled: Whether a ``CancelledError`` is ours although the running asyncio task was not cancelled.

    Raises:
        ComponentExitedError: User code raised a ``BaseException``, or a ``CancelledError`` although it was not
            cancelled.
        asyncio.CancelledError: It was cancelled.
    """
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        if isinstance(error, asyncio.CancelledError) and (cancelled() or _is_cancelled()):
            raise
        if isinstance(error, GeneratorExit) and not _is_running():
            raise  # the coroutine is closed, as the interpreter does with one that is left behind
        logger.exception("%s raised %s", what, type(error).__name__)
        raise ComponentExitedError(type(error).__name__) from error


def text_of_error(error: Exception) -> str:
    """The text of an exception of user code; its type's name where it fails to give one."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - __str__ of user code raises anything
        return type(error).__name__


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _is_running() -> bool:
    try:
        return asyncio.current_task() is not None
    except RuntimeError:  # no event loop runs
        return False
