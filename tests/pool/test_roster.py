"""Who runs, and who waits."""

import pytest

from mcp_celery.asyncio_pool.job import Job, Verdict
from mcp_celery.asyncio_pool.roster import Census, Roster

pytestmark = pytest.mark.smoke  # no processes: quick


def job(name: str, *, on_loop: bool = True) -> Job:
    return Job(lambda: None, job_id=name, name=name, on_loop=on_loop)


def names(jobs: list[Job]) -> list[str]:
    return [job.name for job in jobs]


def test_jobs_have_their_turn_in_the_order_in_which_they_came() -> None:
    roster = Roster(1, threads=1)
    first, *others = (job(name) for name in "abc")
    assert roster.add(first)
    assert [roster.add(other) for other in others] == [False, False]
    assert names(roster.leave(first)) == ["b"]
    assert names(roster.leave(others[0])) == ["c"]
    assert names(roster.leave(others[1])) == []
    assert roster.census() == Census(running=0, in_threads=0, waiting=0, waits_for_thread=False)


def test_there_is_room_for_as_many_as_may_run() -> None:
    roster = Roster(2, threads=1)
    assert roster.has_room()
    roster.add(first := job("a"))
    assert roster.has_room()
    roster.add(job("b"))
    assert not roster.has_room()
    roster.leave(first)
    assert roster.has_room()
    roster.close()
    assert not roster.has_room()


def test_only_those_that_wait_for_a_thread_are_overtaken() -> None:
    roster = Roster(3, threads=1)
    assert roster.add(threaded := job("thread-1", on_loop=False))
    assert not roster.add(job("thread-2", on_loop=False))
    assert roster.add(looped := job("loop-1"))
    assert roster.add(job("loop-2"))
    assert not roster.add(job("loop-3"))
    assert roster.census() == Census(running=3, in_threads=1, waiting=2, waits_for_thread=True)
    assert names(roster.leave(threaded)) == ["thread-2"]  # it has waited longer than loop-3
    assert names(roster.leave(looped)) == ["loop-3"]


def test_a_limit_can_be_changed_either_way() -> None:
    roster = Roster(0, threads=1)
    jobs = [job(name) for name in "abc"]
    assert [roster.add(one) for one in jobs] == [False] * 3
    assert names(roster.resize(2)) == ["a", "b"]
    assert names(roster.resize(-1)) == []
    assert names(roster.leave(jobs[0])) == []
    assert names(roster.leave(jobs[1])) == ["c"]
    with pytest.raises(ValueError, match="cannot shrink by 2"):
        roster.resize(-2)
    assert roster.limit == 1


def test_the_first_reason_to_end_a_job_counts() -> None:
    roster = Roster(1, threads=1)
    roster.add(one := job("a"))
    assert roster.condemn(one, Verdict.TIMED_OUT)
    assert not roster.condemn(one, Verdict.TERMINATED)
    assert roster.settle(one) is Verdict.TIMED_OUT


def test_a_job_that_has_ended_cannot_be_ended_again() -> None:
    roster = Roster(1, threads=1)
    roster.add(one := job("a"))
    assert roster.settle(one) is None
    assert not roster.condemn(one, Verdict.TERMINATED)


def test_only_a_waiting_job_can_be_withdrawn() -> None:
    roster = Roster(1, threads=1)
    roster.add(running := job("a"))
    roster.add(waiting := job("b"))
    assert not roster.withdraw(running)
    assert roster.withdraw(waiting)
    assert not roster.withdraw(waiting)
    assert names(roster.leave(running)) == []


def test_a_flushed_job_does_not_begin() -> None:
    roster = Roster(1, threads=1)
    running, admitted, waiting = (job(name) for name in "abc")
    assert roster.add(running)
    assert roster.begin(running)
    roster.add(admitted)
    roster.add(waiting)
    roster.leave(running)
    roster.flush()
    assert not roster.begin(admitted)
    assert waiting.done
    assert names(roster.leave(admitted)) == []
    assert roster.add(job("d"))


def test_no_job_begins_once_the_roster_is_closed() -> None:
    roster = Roster(2, threads=1)
    roster.add(running := job("a"))
    roster.begin(running)
    roster.close()
    assert not roster.add(late := job("b"))
    assert late.done
    assert names(roster.leave(running)) == []
    assert running.verdict is None
