"""What user code raises besides ``Exception``, where it meets cancellation; and the coroutines of its asyncio tasks."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Final

import anyio
import pytest

from mcp_celery.base_exceptions import ChildTaskExit, GuardedCoroutine, containing
from mcp_celery.errors import ComponentExitedError
from mcp_celery.protocol.child_tasks import guarding, prepared

pytestmark = pytest.mark.anyio


class Exiting(logging.Handler):
    """Ends the process at the first error, as a common recipe does."""

    def emit(self, record: logging.LogRecord) -> None:
        raise SystemExit(record.levelno)


@pytest.fixture
def exiting() -> Generator[None]:
    handler, logger = Exiting(), logging.getLogger("mcp_celery")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)


@pytest.mark.usefixtures("exiting")
async def test_a_handler_of_logs_that_exits_changes_nothing_of_what_is_contained() -> None:
    with pytest.raises(ComponentExitedError, match="Odd"), containing("it"):
        raise Odd


async def test_a_group_of_any_depth_names_its_exit() -> None:
    group: BaseException = Odd()
    for _ in range(3_000):
        group = BaseExceptionGroup[BaseException]("in", [group])
    with pytest.raises(ComponentExitedError, match="Odd"), containing("it"):
        raise group


class Odd(BaseException):
    """Like a test framework's outcome."""


GROUPS: Final[tuple[Callable[[asyncio.CancelledError], BaseException], ...]] = (
    lambda cancellation: cancellation,
    lambda cancellation: BaseExceptionGroup("one", [cancellation]),
    lambda cancellation: BaseExceptionGroup("two", [Odd(), cancellation]),
    lambda cancellation: BaseExceptionGroup("nested", [ValueError(), BaseExceptionGroup("in", [Odd(), cancellation])]),
)


async def converted(convert: Callable[[asyncio.CancelledError], BaseException]) -> None:
    with containing("it"):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError as cancellation:
            raise convert(cancellation) from None


@pytest.mark.parametrize("convert", GROUPS, ids=["alone", "group", "mixed", "nested"])
async def test_a_task_that_is_cancelled_ends_as_cancelled(
    convert: Callable[[asyncio.CancelledError], BaseException],
) -> None:
    task = asyncio.create_task(converted(convert))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


@pytest.mark.parametrize("convert", GROUPS, ids=["alone", "group", "mixed", "nested"])
async def test_a_scope_of_anyio_that_is_cancelled_takes_the_cancellation(
    convert: Callable[[asyncio.CancelledError], BaseException],
) -> None:
    with anyio.move_on_after(0) as scope:
        await converted(convert)
    assert scope.cancelled_caught


@pytest.mark.parametrize("convert", GROUPS, ids=["alone", "group", "mixed", "nested"])
async def test_a_cancellation_without_a_request_is_an_error(
    convert: Callable[[asyncio.CancelledError], BaseException],
) -> None:
    with pytest.raises(ComponentExitedError), containing("it"):
        raise convert(asyncio.CancelledError())


async def test_an_exception_group_of_exceptions_stays_as_it_is() -> None:
    group = ExceptionGroup("some", [ValueError()])
    with pytest.raises(ExceptionGroup) as raised, containing("it"):
        raise group
    assert raised.value is group


async def leave(error: BaseException) -> None:
    await asyncio.sleep(0)
    raise error


@pytest.mark.parametrize("error", [SystemExit(2), KeyboardInterrupt(), GeneratorExit()])
async def test_a_guarded_task_ends_with_another_exception(error: BaseException) -> None:
    with prepared(), guarding():
        with pytest.raises(ChildTaskExit) as raised:
            await asyncio.create_task(leave(error))
        assert raised.value.reason is error


async def test_a_guarded_task_continues_after_the_exit_of_another() -> None:
    async def waits() -> str:
        with pytest.raises(ChildTaskExit):
            await asyncio.create_task(leave(GeneratorExit()))
        await asyncio.sleep(0)
        return "went on"

    with prepared(), guarding():
        assert await asyncio.create_task(waits()) == "went on"


@pytest.mark.filterwarnings("error")
async def test_a_guarded_task_that_is_cancelled_before_it_begins_leaves_nothing_behind() -> None:
    with prepared(), guarding():
        task = asyncio.create_task(leave(SystemExit()))
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


async def test_anyio_cancels_guarded_tasks() -> None:
    with prepared(), guarding():
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, 60)
            await asyncio.sleep(0)
            group.cancel_scope.cancel()


async def test_tasks_of_others_and_the_loops_own_factory_stay_as_they_are() -> None:
    loop = asyncio.get_running_loop()
    made: list[str] = []

    def own_factory(
        loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any] | Any, **options: Any
    ) -> asyncio.Task[Any]:
        made.append(type(coroutine).__name__)
        return asyncio.Task(coroutine, loop=loop, **options)

    before = loop.get_task_factory()
    loop.set_task_factory(own_factory)
    try:
        with prepared():
            with prepared(), guarding():
                await asyncio.create_task(asyncio.sleep(0), name="guarded")
            await asyncio.create_task(asyncio.sleep(0))
        assert made == [GuardedCoroutine.__name__, "coroutine"]
        assert loop.get_task_factory() is own_factory
    finally:
        loop.set_task_factory(before)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are of Python 3.12")
async def test_tasks_that_start_at_once_are_guarded_too() -> None:
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()
    loop.set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009 - absent in 3.11
    try:
        with prepared(), guarding():
            for work in (leave(SystemExit()), at_once(SystemExit())):
                with pytest.raises(ChildTaskExit):
                    await asyncio.create_task(work)
    finally:
        loop.set_task_factory(before)


async def at_once(error: BaseException) -> None:
    raise error


async def test_a_guarded_coroutine_looks_like_its_own() -> None:
    coroutine = at_once(SystemExit())
    guarded: Any = GuardedCoroutine(coroutine)
    assert (guarded.__qualname__, guarded.cr_frame) == ("at_once", coroutine.cr_frame)
    coroutine.close()
