"""A time-out that counts only the time in which this process ran."""

from __future__ import annotations

import asyncio
import time

import pytest

from mcp_celery.common.within import STEPS, within

pytestmark = pytest.mark.anyio


async def test_a_block_that_ends_in_time_raises_nothing() -> None:
    async with within(60):
        await asyncio.sleep(0)


async def test_a_block_that_takes_longer_raises_a_timeout() -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        async with within(0.1):
            await asyncio.Event().wait()
    assert time.monotonic() - began >= 0.1


async def test_time_in_which_the_process_did_not_run_counts_for_nothing() -> None:
    answered = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.call_later(0.05, time.sleep, 0.4)  # nothing runs; the answer has arrived meanwhile
    loop.call_later(0.1, answered.set)
    async with within(0.2):
        await answered.wait()


async def test_progress_of_the_other_process_restarts_the_time() -> None:
    done = 0
    async with within(0.2, progress=lambda: done):
        while done < 10:
            await asyncio.sleep(0.05)
            done += 1


async def test_the_time_ends_when_the_other_process_makes_no_progress() -> None:
    loop, done = asyncio.get_running_loop(), [0]
    loop.call_later(0.1, done.append, 1)
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        async with within(0.2, progress=lambda: len(done)):
            await asyncio.Event().wait()
    assert time.monotonic() - began >= 0.3


async def test_data_that_has_arrived_when_the_time_is_over_is_taken_first() -> None:
    """The event loop has received it, and the task that waits for it has not run yet."""
    loop, arrived, asked = asyncio.get_running_loop(), list[int](), 0

    def progress() -> int:
        nonlocal asked
        asked += 1
        if asked == 1 + STEPS:
            loop.call_soon(arrived.append, 1)
        return len(arrived)

    began = time.monotonic()
    with pytest.raises(TimeoutError):
        async with within(0.2, progress=progress):
            await asyncio.Event().wait()
    assert time.monotonic() - began >= 0.4


async def test_an_error_and_a_cancellation_from_outside_stay_what_they_are() -> None:
    with pytest.raises(KeyError):
        async with within(60):
            raise KeyError

    async def wait() -> None:
        async with within(60):
            await asyncio.Event().wait()

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
