"""The status table says everything about states; nothing else decides."""

from typing import get_args

import pytest

from mcp_celery.engine import MOVES, OPEN, TERMINAL, TaskStatus, sources_of

STATUSES: tuple[TaskStatus, ...] = get_args(TaskStatus)


def test_every_status_has_a_line_in_the_table() -> None:
    assert set(MOVES) == set(STATUSES)


def test_a_status_is_either_open_or_terminal() -> None:
    assert set(STATUSES) == OPEN | TERMINAL
    assert not OPEN & TERMINAL


@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_a_terminal_status_is_final(status: TaskStatus) -> None:
    assert MOVES[status] == frozenset()


@pytest.mark.parametrize("status", sorted(OPEN))
def test_an_open_task_may_become_anything(status: TaskStatus) -> None:
    assert MOVES[status] == set(STATUSES)


@pytest.mark.parametrize("target", STATUSES)
def test_sources_are_the_moves_read_backwards(target: TaskStatus) -> None:
    assert {source for source in STATUSES if target in MOVES[source]} == sources_of(target)


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        MOVES["completed"] = frozenset({"working"})  # type: ignore[index] # pyright: ignore[reportIndexIssue]
