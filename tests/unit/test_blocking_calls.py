"""Blocking calls in threads: the time-out is that of a call, not of its line."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest

from mcp_celery.broker.blocking_calls import BlockingCalls
from mcp_celery.common.call_limiter import NoAnswerError
from tests.support.waiting import eventually, soon

pytestmark = pytest.mark.anyio

FOREVER_SECONDS = 60.0


@asynccontextmanager
async def calls(threads: int, timeout_seconds: float = FOREVER_SECONDS) -> AsyncGenerator[BlockingCalls]:
    made = BlockingCalls("the service", "test-calls", threads=threads, timeout_seconds=timeout_seconds)
    try:
        yield made
    finally:
        await made.aclose(lambda: None, patience_seconds=FOREVER_SECONDS)


def raise_timeout() -> None:
    raise TimeoutError("the driver waited for long enough")


async def test_many_waiting_calls_are_no_outage() -> None:
    async with calls(1, timeout_seconds=0.5) as service:
        await soon(asyncio.gather(*(service.call(lambda: time.sleep(0.02)) for _ in range(60))))


async def test_a_call_above_the_timeout_is_an_outage_and_waiting_calls_fail_with_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    may_end = threading.Event()
    async with calls(1, timeout_seconds=0.2) as service:
        try:
            answers = await soon(
                asyncio.gather(*(service.call(may_end.wait) for _ in range(4)), return_exceptions=True)
            )
            assert [type(answer) for answer in answers] == [TimeoutError, *3 * [NoAnswerError]]
            assert "the service does not answer: 3 calls that waited for it have failed" in caplog.text
            with pytest.raises(NoAnswerError):  # its thread hangs still
                await soon(service.call(lambda: None))
        finally:
            may_end.set()
        assert await eventually(lambda: answered(service, lambda: "back")) == "back"


async def answered(service: BlockingCalls, work: Callable[[], str]) -> str | None:
    try:
        return await service.call(work)
    except TimeoutError:
        return None


async def test_a_time_out_of_the_driver_fails_those_that_wait() -> None:
    async with calls(1) as service:
        first = service.call(raise_timeout)
        answers = await soon(
            asyncio.gather(first, *(service.call(lambda: 1) for _ in range(3)), return_exceptions=True)
        )
    assert [type(answer) for answer in answers] == [TimeoutError, *3 * [NoAnswerError]]


async def test_another_error_fails_its_call_alone() -> None:
    async with calls(1) as service:
        answers = await soon(
            asyncio.gather(service.call(lambda: int("none")), service.call(lambda: 1), return_exceptions=True)
        )
    assert [type(answer) for answer in answers] == [ValueError, int]


async def test_one_call_that_hangs_does_not_fail_others_while_the_service_answers_them() -> None:
    may_end = threading.Event()
    async with calls(2, timeout_seconds=0.3) as service:
        hanging = asyncio.create_task(service.call(may_end.wait))
        try:
            answers = await soon(
                asyncio.gather(*(service.call(lambda: time.sleep(0.02)) for _ in range(40)), return_exceptions=True)
            )
            assert answers == [None] * 40
            with pytest.raises(TimeoutError):
                await soon(hanging)
        finally:
            may_end.set()


async def test_a_call_that_may_wait_runs_when_the_thread_is_free() -> None:
    may_end = threading.Event()
    async with calls(1, timeout_seconds=0.1) as service:
        with pytest.raises(TimeoutError):
            await soon(service.call(may_end.wait))
        last = asyncio.create_task(service.call_at_last(lambda: "called"))
        await asyncio.sleep(0.3)
        assert not last.done()
        may_end.set()
        assert await soon(last) == "called"


async def test_a_call_that_is_cancelled_while_it_waits_is_not_made() -> None:
    may_end, made = threading.Event(), list[int]()
    async with calls(1) as service:
        running = asyncio.create_task(service.call(may_end.wait))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(service.call(lambda: made.append(1)))
        await asyncio.sleep(0)
        waiting.cancel()
        may_end.set()
        assert await soon(running)
    assert waiting.cancelled()
    assert made == []


async def test_a_call_sees_its_callers_context_and_leaves_nothing_in_it() -> None:
    """What traces publishers has its parent in the context, and may leave a span there."""
    number = contextvars.ContextVar("number", default=0)

    def add_to(by: int) -> int:
        number.set(number.get() + by)
        return number.get()

    async with calls(1) as service:
        number.set(10)
        assert [await service.call(lambda: add_to(1)), await service.call(lambda: add_to(2))] == [11, 12]
        assert number.get() == 10
