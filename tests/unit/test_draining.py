"""Draining a worker that dies or starts again meanwhile, as its answers to remote control tell it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import pytest
from celery import Celery
from kombu.exceptions import OperationalError

from mcp_celery.operate import workers
from mcp_celery.operate.workers import DrainError, drained

NODE: Final = "worker@host"
BEFORE: Final = {"pid": 1, "uptime": 600}
"""A process in a container, whose number each of its successors has, too."""


class Answers:
    """Stands for remote control: a worker with a job, whose processes answer one after the other.

    Args:
        processes: What each answers to ``stats``; None: none answers; an error: the broker does not answer.
        jobs: How many jobs it has in each round.
    """

    def __init__(self, processes: Sequence[dict[str, Any] | OperationalError | None], jobs: Sequence[int]) -> None:
        self._processes = [*processes]
        self._jobs = [*jobs]
        self.did: list[str] = []

    def inspect(self, **_: object) -> Answers:
        return self

    def stats(self) -> dict[str, Any] | None:
        process = self._processes.pop(0) if len(self._processes) > 1 else self._processes[0]
        if isinstance(process, OperationalError):
            raise process
        return process and {NODE: process}

    def active_queues(self) -> dict[str, Any]:
        return {NODE: [{"name": "mcp.reports"}]}

    def active(self) -> dict[str, Any]:
        return {NODE: [{}] * self._jobs.pop(0)}

    def reserved(self) -> dict[str, Any]:
        return {NODE: []}

    scheduled = reserved

    def cancel_consumer(self, queue: str, **_: object) -> None:
        self.did.append(f"cancel {queue}")

    def shutdown(self, **_: object) -> None:
        self.did.append("shutdown")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "LOOK_SECONDS", 0)
    monkeypatch.setattr(workers, "SILENT_SECONDS", 0)


def drained_with(answers: Answers) -> int:
    app = Celery("app", broker="memory://", set_as_current=False)
    vars(app)["control"] = answers
    return drained(app, NODE, timeout_seconds=None)


def test_a_worker_that_is_silent_for_a_moment_drains() -> None:
    solo = BEFORE | {"pool": {"implementation": "celery.concurrency.solo:TaskPool"}}
    answers = Answers([solo, solo, None, solo], [1, 0])
    assert drained_with(answers) == 1
    assert answers.did == ["cancel mcp.reports", "shutdown"]


def test_a_worker_that_dies_while_it_drains_is_no_longer_waited_for() -> None:
    answers = Answers([BEFORE, BEFORE, None], [1])
    with pytest.raises(DrainError, match="worker@host has not answered for 0 seconds: it has ended, died, or hangs"):
        drained_with(answers)
    assert answers.did == ["cancel mcp.reports"]


@pytest.mark.parametrize("successor", [{"pid": 2, "uptime": 601}, {"pid": 1, "uptime": 3}], ids=["pid", "uptime"])
def test_a_worker_that_was_started_again_is_not_shut_down(successor: dict[str, Any]) -> None:
    answers = Answers([BEFORE, BEFORE, successor], [1, 0])
    with pytest.raises(DrainError, match="was started again while it drained"):
        drained_with(answers)
    assert answers.did == ["cancel mcp.reports"]


@pytest.mark.parametrize(("asked", "said"), [(0, "was not asked"), (2, "takes no more jobs, and runs on")])
def test_a_broker_that_does_not_answer_is_an_error_that_says_whether_the_worker_was_asked(
    asked: int, said: str
) -> None:
    answers = Answers([*[BEFORE] * asked, OperationalError("refused")], [1])
    with pytest.raises(DrainError, match=rf"^the broker does not answer \(OperationalError\): the worker .* {said}$"):
        drained_with(answers)
