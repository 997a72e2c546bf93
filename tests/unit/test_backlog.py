"""What one publisher knows of a queue: looks are rare, no more are let in than may be, nobody is kept out for long."""

from __future__ import annotations

import asyncio
import random

import pytest

from mcp_celery.broker.queue_limit import LOOK_AGAIN_SECONDS, LOOK_SECONDS, Backlog


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_no_job_is_accepted_before_the_first_count() -> None:
    backlog = Backlog(3)
    assert not backlog.is_surely_full
    assert not backlog.enter()


def test_as_many_jobs_are_accepted_as_there_was_room_for() -> None:
    backlog = Backlog(5, clock=Clock())
    backlog.looked(3)
    assert [backlog.enter() for _ in range(4)] == [True, True, False, False]


def test_a_count_of_the_queue_holds_for_a_while() -> None:
    clock = Clock()
    backlog = Backlog(5, clock=clock)
    backlog.looked(0)
    clock.now = LOOK_SECONDS * 0.9
    assert backlog.enter()
    clock.now = LOOK_SECONDS
    assert not backlog.enter()


def test_a_queue_that_is_drained_as_fast_as_it_fills_refuses_no_job() -> None:
    clock = Clock()
    backlog = Backlog(2, clock=clock)
    backlog.looked(0)
    for _ in range(100):
        if not backlog.enter():
            assert not backlog.is_surely_full
            backlog.looked(0)
            assert backlog.enter()
        backlog.leave()


def test_a_full_queue_is_not_counted_again_for_a_moment() -> None:
    clock = Clock()
    backlog = Backlog(2, clock=clock)
    backlog.looked(2)
    assert backlog.is_surely_full
    clock.now = LOOK_AGAIN_SECONDS
    assert not backlog.is_surely_full


def test_a_count_includes_accepted_jobs_that_are_not_in_the_queue_yet() -> None:
    backlog = Backlog(3, clock=Clock())
    backlog.looked(0)
    assert all(backlog.enter() for _ in range(3))
    backlog.looked(0)
    assert not backlog.enter()
    backlog.leave()
    backlog.looked(0)
    assert backlog.enter()


def test_no_more_jobs_wait_than_the_limit_allows() -> None:
    dice, clock = random.Random(7), Clock()
    for most in (1, 2, 5):
        backlog, queue, on_the_way = Backlog(most, clock=clock), 0, 0
        for _ in range(2_000):
            match dice.choice(["enter", "publish", "lose", "work", "look", "wait"]):
                case "enter":
                    on_the_way += backlog.enter()
                case "publish" if on_the_way:
                    queue, on_the_way = queue + 1, on_the_way - 1
                    backlog.leave()
                case "lose" if on_the_way:
                    on_the_way -= 1
                    backlog.leave()
                case "work":
                    queue = max(0, queue - 1)
                case "look":
                    backlog.looked(queue)
                case _:
                    clock.now += dice.random() * LOOK_SECONDS
            assert queue + on_the_way <= most


@pytest.mark.anyio
async def test_simultaneous_requests_share_one_count() -> None:
    looks: list[int] = []

    async def look() -> int:
        looks.append(len(looks))
        await asyncio.sleep(0)
        return 7

    backlog = Backlog(10)
    let_in = await asyncio.gather(*[backlog.has_room(look) for _ in range(20)])
    assert sum(let_in) == 3
    assert len(looks) <= 2
