"""Calls that wait for their turn: in order, for as long as the service answers, and not in vain."""

from __future__ import annotations

import asyncio
import time

import pytest

from mcp_celery.common.call_limiter import CallLimiter, NoAnswerError
from tests.support.waiting import eventually, soon

pytestmark = pytest.mark.anyio

FOREVER_SECONDS = 60.0


async def waiting(limiter: CallLimiter, number: int, order: list[int]) -> None:
    await limiter.enter()
    order.append(number)


async def begun(limiter: CallLimiter, number: int) -> tuple[list[asyncio.Task[None]], list[int]]:
    """Calls that wait, and in which order they get their turn."""
    order: list[int] = []
    tasks = [asyncio.create_task(waiting(limiter, one, order)) for one in range(number)]
    await asyncio.sleep(0)
    return tasks, order


async def test_calls_get_their_turns_in_order() -> None:
    limiter = CallLimiter(2, timeout_seconds=FOREVER_SECONDS)
    tasks, order = await begun(limiter, 5)
    assert order == [0, 1]
    for expected in (3, 4, 5):
        limiter.leave()
        await eventually(lambda expected=expected: len(order) == expected)
    assert order == [0, 1, 2, 3, 4]
    await asyncio.gather(*tasks)


async def test_a_waiting_call_has_no_timeout_of_its_own() -> None:
    limiter = CallLimiter(1, timeout_seconds=0.05)
    tasks, order = await begun(limiter, 2)
    await asyncio.sleep(0.2)
    assert order == [0]
    limiter.leave()
    await soon(asyncio.gather(*tasks))
    assert order == [0, 1]


async def test_a_call_that_is_cancelled_leaves_its_place_to_the_next() -> None:
    limiter = CallLimiter(1, timeout_seconds=FOREVER_SECONDS)
    tasks, order = await begun(limiter, 3)
    tasks[1].cancel()
    await asyncio.gather(tasks[1], return_exceptions=True)
    limiter.leave()
    await soon(tasks[2])
    assert order == [0, 2]


async def test_a_call_that_is_cancelled_as_it_gets_its_turn_passes_it_on() -> None:
    limiter = CallLimiter(1, timeout_seconds=FOREVER_SECONDS)
    tasks, order = await begun(limiter, 3)
    limiter.leave()
    tasks[1].cancel()
    await soon(tasks[2])
    assert order == [0, 2]
    assert tasks[1].cancelled()


async def test_waiting_calls_fail_when_a_call_gets_no_answer() -> None:
    limiter = CallLimiter(1, timeout_seconds=FOREVER_SECONDS)
    tasks, order = await begun(limiter, 3)
    assert limiter.fail_waiting() == 2
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer) for answer in answers] == [type(None), NoAnswerError, NoAnswerError]
    limiter.leave()
    await soon(waiting(limiter, 3, order))
    assert order == [0, 3]


async def test_a_call_behind_an_unanswered_one_waits_no_longer_than_the_timeout() -> None:
    limiter = CallLimiter(1, timeout_seconds=0.1)
    await limiter.enter()
    limiter.fail_waiting()
    began = time.monotonic()
    with pytest.raises(NoAnswerError):
        await soon(limiter.enter())
    assert time.monotonic() - began >= 0.1
    limiter.leave()
    await soon(limiter.enter())


async def test_a_call_that_may_not_fail_keeps_waiting() -> None:
    limiter = CallLimiter(1, timeout_seconds=0.05)
    await limiter.enter()
    patient = asyncio.create_task(limiter.enter(may_fail=False))
    await asyncio.sleep(0)
    assert limiter.fail_waiting() == 0
    await asyncio.sleep(0.2)
    assert not patient.done()
    limiter.leave()
    await soon(patient)
