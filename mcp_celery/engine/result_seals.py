"""Results of own jobs in Celery's result backend: sealed where there are encryption keys, and believed only then.

A result is sealed for its job (namespace, compound key and leg), with the attempt that returned it. It is refused in
every other place, and where it was changed. What exposed jobs return is their own workers' to store, and is not sealed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, cast

from mcp_celery.common.formats import SEALED_RESULT
from mcp_celery.common.jsonable import json_text
from mcp_celery.engine.outcome import (
    FAILURE,
    REFUSED,
    SUCCESS,
    JobOutcome,
    failure,
    is_of_later_release,
    is_own_reason,
)
from mcp_celery.engine.record import JSONObject, StoredResult, TaskRecord
from mcp_celery.errors import JobFailedError, SealedJobError
from mcp_celery.sealing import Place, Purpose, SealError, Sealing, is_sealed

logger = logging.getLogger(__name__)

_SEALED: Final = "sealed"
"""The name of the sealed text in what is stored."""


class JobRun(NamedTuple):
    """Which run of which job stores a result.

    Attributes:
        key: The task's compound key.
        leg: Which job of the task it is.
        attempt: Which publication of that job.
    """

    key: str
    leg: int
    attempt: int


@dataclass(frozen=True, slots=True)
class ResultSeals:
    """Seals and opens the results of a server's own jobs.

    Args:
        namespace: The server's namespace.
        sealing: How texts are sealed. Without keys results are stored and read as they are.
    """

    namespace: str
    sealing: Sealing

    def result(self, outcome: JobOutcome, run: JobRun) -> JSONObject:
        """The stored form of a job that returned."""
        if not self.sealing.seals("result"):
            return outcome.__json__()
        # The result is JSON already: within more JSON each quote of it would be escaped.
        text = f"{json_text({**outcome.description, 'attempt': run.attempt})}\n{outcome.text}"
        return {"format": SEALED_RESULT, _SEALED: self.sealing.seal("result", self._place(run.key, run.leg), text)}

    def error(self, error: BaseException, run: JobRun) -> BaseException:
        """The stored form of a job that failed.

        Only a :class:`JobFailedError` holds anything of the component or the caller. The library's own reasons are
        stored as they are: a worker with other keys than the server's fails each task, and the server says why.
        """
        if not self.sealing.seals("error") or _is_own_reason(type(error).__name__, error.args):
            return error
        text = json_text([run.attempt, *error.args])
        return SealedJobError(self.sealing.seal("error", self._place(run.key, run.leg), text))

    def opened(self, record: TaskRecord, stored: StoredResult) -> StoredResult:
        """A stored result of a task's current job as it was before it was sealed; :data:`REFUSED` in place of one that
        was not sealed for this job.
        """
        try:
            if stored.state == SUCCESS:
                return StoredResult(SUCCESS, self._opened_result(record, stored.value))
            if stored.state == FAILURE:
                return StoredResult(FAILURE, self._opened_error(record, stored.value))
        except SealError as error:
            logger.error("refused the stored result of task %s: %s", record.shown_id, error)
            return REFUSED
        return stored

    def _opened_result(self, record: TaskRecord, value: object) -> object:
        if is_of_later_release(value):
            return value
        text = self._text("result", record, _object(value).get(_SEALED))
        if text is None:
            return value
        description, _, result = text.partition("\n")
        found = cast(JSONObject, json.loads(description))
        _require_attempt(record, found.pop("attempt"))
        return {**found, "result": result}

    def _opened_error(self, record: TaskRecord, value: object) -> object:
        described = _object(value)
        name, given = str(described.get("exc_type")), described.get("exc_message")
        arguments = tuple(cast("Sequence[Any]", given)) if isinstance(given, list | tuple) else ()
        is_sealed = name == SealedJobError.__name__
        if not is_sealed and _is_own_reason(name, arguments):
            return value
        text = self._text("error", record, arguments[0] if is_sealed and arguments else None)
        if text is None:
            return value
        attempt, *opened = cast("list[Any]", json.loads(text))
        _require_attempt(record, attempt)
        return {"exc_type": JobFailedError.__name__, "exc_message": opened}

    def _text(self, purpose: Purpose, record: TaskRecord, sealed: object) -> str | None:
        """The text in a sealed one. None: what is stored is not sealed, and that is accepted.

        Raises:
            SealError: It does not open in this place, or what is not sealed is not accepted.
        """
        stored = sealed if isinstance(sealed, str) else ""
        if not self.sealing.is_on and not is_sealed(stored):
            return None
        return self.sealing.open(purpose, self._place(record.key, record.leg), stored) or None

    def _place(self, key: str, leg: int) -> Place:
        return [self.namespace, key, leg]


def _object(value: object) -> JSONObject:
    return cast(JSONObject, value) if isinstance(value, dict) else {}


def _is_own_reason(exception_name: str, arguments: tuple[Any, ...]) -> bool:
    change = failure(exception_name, arguments)
    return change.error is not None and is_own_reason(change.error)


def _require_attempt(record: TaskRecord, attempt: int) -> None:
    """Refuse what another attempt returned than those that the task has had of its current job.

    One that was given up may still have ended: its result counts, as it does without keys.

    Raises:
        SealError: It is another attempt's.
    """
    # Each leg begins with an attempt of its own, so that the first attempt of a leg has at least its number.
    if not record.leg <= attempt <= record.attempt:
        raise SealError("another attempt of the job returned it")


UNSEALED_RESULTS: Final = ResultSeals("", Sealing())
"""Results are stored and read as they are."""
