"""Handing a job back: a worker received it whose version of the component is not the one that the server has.

In a rolling deploy workers of two versions consume one queue, and the broker gives a job to any of them. The record has
the fingerprint of the component that the request was checked against. A worker that has another one does not start the
job. As long as another live worker advertises the fingerprint, the job is handed back: its next attempt is due after a
pause, which grows with each hand-back and is partly random. The index ``due`` holds it meanwhile, so it outlives the
worker. Otherwise the task fails with a reason that names both versions, or the job still runs
(``MCP_CELERY_COMPONENT_MATCH``).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from mcp_celery.engine.ids import new_call
from mcp_celery.engine.record import Change, RpcError
from mcp_celery.errors import INTERNAL_ERROR

MAX_PAUSES_MS: Final = 60_000
"""How long the pauses of a job may be together. The time that it waits in the queue is not counted: behind a long queue
each hand-back takes minutes, and the deploy ends meanwhile.
"""
FIRST_PAUSE_MS: Final = 100
"""Pause before the next attempt after the first hand-back. It doubles with each further one."""
LONGEST_PAUSE_MS: Final = 1_000
WAITING: Final = "Waiting for a worker that has the server's version of the component"
"""The status message of a task whose job was handed back."""

Verdict = Literal["handed back", "nowhere", "too often", "superseded"]
"""The outcome of a hand-back. ``nowhere``: no other live worker advertises the fingerprint, or the record has none, or
the job should have started by now. ``too often``: it was handed back as often, or for as long, as a job is.
``superseded``: the task has ended, counts another attempt, or its job has started elsewhere; the worker drops this
delivery.
"""
VERDICTS: Final[tuple[Verdict, ...]] = get_args(Verdict)


@dataclass(frozen=True, slots=True, kw_only=True)
class HandBack:
    """A delivery of a job that its worker does not start.

    Attributes:
        attempt: Which attempt of the task the job is of.
        retries: Celery's count of its retries.
        worker: The worker, as in its claims.
        key: The compound key in the job's message, which may be forged.
        most: How often a job is handed back.
        share: The part of the full pause to wait, at random within 0.5…1, so that the jobs that one worker hands back
            do not all come at the same moment.
        call: As in :class:`mcp_celery.engine.Change`.
    """

    attempt: int
    retries: int
    worker: str
    key: str
    most: int
    share: float = field(default_factory=lambda: random.uniform(0.5, 1))  # noqa: S311 - it keeps no secret
    call: str = field(default_factory=new_call, compare=False, repr=False)

    def pause_ms(self, number: int) -> int:
        """The pause before the next attempt.

        Args:
            number: How often the job was handed back before.
        """
        return round(self.share * min(FIRST_PAUSE_MS << min(number, 16), LONGEST_PAUSE_MS))


@dataclass(frozen=True, slots=True)
class HandedBack:
    """The outcome of a hand-back.

    Attributes:
        verdict: That.
        pause_ms: When it was handed back: after how many ms the next attempt is due.
    """

    verdict: Verdict
    pause_ms: int = 0

    @property
    def is_over(self) -> bool:
        """Whether the worker has nothing more to do with the job."""
        return self.verdict in ("handed back", "superseded")


class OtherVersionError(Exception):
    """A job was not let start: the record has another fingerprint than the worker's component.

    Args:
        fingerprint: The record's.
    """

    def __init__(self, fingerprint: str) -> None:
        super().__init__(fingerprint)
        self.fingerprint = fingerprint


def wrong_version(server: str, worker: str | None, verdict: Verdict) -> Change:
    """The change of a task whose job reached no worker with the server's version of the component.

    Args:
        server: Fingerprint of the component that the server has.
        worker: That of the worker which received the job last; None where it has no such component.
        verdict: Why the job was not handed back.
    """
    theirs = "that worker has no such component" if worker is None else f"that worker has version {worker}"
    why = (
        f"it was handed back for {MAX_PAUSES_MS // 1000} s or MCP_CELERY_MAX_HANDBACKS times"
        if verdict == "too often"
        else "no other live worker has the server's version"
    )
    text = (
        "The job was not run, because it reached a worker of another version than the server's: the server has version "
        f"{server} of the component, {theirs}, and {why}"
    )
    return Change(to="failed", error=RpcError(INTERNAL_ERROR, text), status_message=text)
