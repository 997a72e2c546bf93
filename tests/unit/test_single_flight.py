"""One call for all who ask at the same time."""

from __future__ import annotations

import asyncio

import pytest

from mcp_celery.common.single_flight import SingleFlight
from tests.support.waiting import soon

pytestmark = pytest.mark.anyio


class Service:
    def __init__(self) -> None:
        self.called = 0
        self.may_answer = asyncio.Event()
        self.fails = False

    async def call(self) -> int:
        self.called += 1
        number = self.called
        await self.may_answer.wait()
        if self.fails:
            raise OSError(f"failure {number}")
        return number


async def test_simultaneous_callers_share_the_answer_and_later_ones_get_another() -> None:
    service, flight = Service(), SingleFlight[int]()
    asking = [asyncio.create_task(flight.do(service.call)) for _ in range(3)]
    await asyncio.sleep(0)
    service.may_answer.set()
    assert await soon(asyncio.gather(*asking)) == [1, 1, 1]
    assert await soon(flight.do(service.call)) == 2


async def test_simultaneous_callers_share_the_error() -> None:
    service, flight = Service(), SingleFlight[int]()
    service.fails = True
    service.may_answer.set()
    errors = await soon(asyncio.gather(*(flight.do(service.call) for _ in range(3)), return_exceptions=True))
    assert [str(error) for error in errors] == ["failure 1"] * 3


async def test_a_cancelled_caller_does_not_take_the_answer_from_others() -> None:
    service, flight = Service(), SingleFlight[int]()
    first = asyncio.create_task(flight.do(service.call))
    await asyncio.sleep(0)
    second = asyncio.create_task(flight.do(service.call))
    await asyncio.sleep(0)
    first.cancel()
    service.may_answer.set()
    assert await soon(second) == 1
    assert first.cancelled()
