"""How a job ends: what Celery keeps of it, and what that says of the task."""

import json
from typing import Any

import pytest
from kombu import serialization
from kombu.utils.json import dumps, loads

from mcp_celery.common.formats import FORMAT, SEALED_RESULT, UNNUMBERED
from mcp_celery.engine import Change, JobOutcome, Progress, RpcError, StoredResult, failure, settlement, success
from mcp_celery.engine.outcome import EXPIRED_REASON, FAILURE_REASONS, UNKNOWN_REASON
from mcp_celery.errors import INTERNAL_ERROR, JobFailedError

RESULT: dict[str, Any] = {"content": [{"type": "text", "text": "a private word"}], "isError": False}
TOOL_ERROR: dict[str, Any] = {"content": [{"type": "text", "text": "a private word"}], "isError": True}
AT = 1_790_000_000_000


def at(change: Change | None) -> Change | None:
    """The change without the moment it was made at."""
    if change is None:
        return None
    return Change(
        to=change.to,
        attempt=change.attempt,
        status_message=change.status_message,
        is_error=change.is_error,
        error=change.error,
        progress=change.progress,
        at_ms=AT,
    )


def test_the_error_of_a_job_can_be_sent() -> None:
    change = failure("JobFailedError", [1, "caf\udce9", {"names": ["caf\udce9"]}])
    assert change.error == RpcError(1, "caf?", {"names": ["caf?"]})


class TestJobOutcome:
    @pytest.mark.parametrize("result", [RESULT, TOOL_ERROR])
    def test_the_repr_and_str_of_an_outcome_hide_its_contents(self, result: dict[str, Any]) -> None:
        outcome = JobOutcome(result, "also private")
        assert "private" not in f"{outcome!r} {outcome}"

    def test_the_repr_of_an_outcome_distinguishes_a_tool_error_from_a_result(self) -> None:
        assert repr(JobOutcome(RESULT)) != repr(JobOutcome(TOOL_ERROR))

    @pytest.mark.parametrize("message", [None, "", "37 of 40 files"])
    @pytest.mark.parametrize("progress", [None, Progress(37, 40), Progress(0.5)])
    def test_an_outcome_survives_celerys_json(self, message: str | None, progress: Progress | None) -> None:
        outcome = JobOutcome(RESULT, message, progress)
        read = JobOutcome.from_json(loads(dumps(outcome)))
        assert read is not None
        assert (read.result, read.status_message, read.progress) == (RESULT, message, progress)

    def test_celery_stores_the_result_as_a_text(self) -> None:
        stored = json.loads(dumps({"result": JobOutcome(TOOL_ERROR)}))["result"]
        assert json.loads(stored.pop("result")) == TOOL_ERROR
        assert stored == {"format": FORMAT, "isError": True, "statusMessage": None, "progress": None}

    @pytest.mark.parametrize("result", [RESULT, TOOL_ERROR])
    def test_release_0_1_0_is_understood_both_ways(self, result: dict[str, Any]) -> None:
        stored = json.loads(dumps(JobOutcome(result, "done", Progress(3, 3), form=UNNUMBERED)))
        assert stored == {"result": result, "statusMessage": "done", "progress": [3, 3]}
        read = JobOutcome.from_json(stored)
        assert read is not None
        assert (read.result, read.is_error, read.status_message) == (result, bool(result.get("isError")), "done")

    def test_a_later_format_is_not_read_and_ends_no_task(self, caplog: pytest.LogCaptureFixture) -> None:
        later = {"format": SEALED_RESULT + 1, "result": "{}"}
        assert JobOutcome.from_json(later) is None
        assert f"format {SEALED_RESULT + 1}; this release reads formats up to {SEALED_RESULT}" in caplog.text
        assert settlement(StoredResult("SUCCESS", later)) is None

    @pytest.mark.parametrize("serializer", ["json", "yaml", "msgpack", "pickle"])
    @pytest.mark.parametrize(
        "value",
        [
            {"__type__": "decimal", "__value__": "1.0"},
            {"__type__": "base64", "__value__": "QUJD"},
            {"__type__": "Widget", "__value__": "somebody else's"},
            {"!!python/name": "os.system", "<<": [{"a": 1}]},
            [2**70, -(2**63) - 1, 1e308, 5e-324],
            "\x00\x85\u2028\ufeff🚀 \\u0041",
            {"exc_type": "ValueError", "exc_message": ["x"], "exc_module": "builtins"},
        ],
        ids=str,
    )
    def test_a_result_is_opaque_to_every_serializer(self, value: object, serializer: str) -> None:
        content_type, encoding, stored = serialization.dumps(JobOutcome({"value": value}).__json__(), serializer)
        read = JobOutcome.from_json(serialization.loads(stored, content_type, encoding, accept={content_type}))
        assert read is not None
        assert read.result == {"value": value}

    def test_the_size_of_an_outcome_is_that_of_its_json_in_utf8(self) -> None:
        assert JobOutcome({"content": "é"}).size == len('{"content":"é"}'.encode())

    @pytest.mark.parametrize("strange", [None, 3, "text", [], {}, {"result": None}, {"result": "text"}, {"other": {}}])
    def test_other_values_are_no_outcome(self, strange: object) -> None:
        assert JobOutcome.from_json(strange) is None

    def test_a_message_or_progress_of_another_form_is_left_out(self) -> None:
        read = JobOutcome.from_json({"result": RESULT, "statusMessage": 3, "progress": "half"})
        assert read is not None
        assert (read.status_message, read.progress) == (None, None)

    @pytest.mark.parametrize(("result", "is_error"), [(RESULT, False), (TOOL_ERROR, True), ({"content": []}, False)])
    def test_an_outcome_has_whether_the_tool_reported_an_error(self, result: dict[str, Any], is_error: bool) -> None:
        assert JobOutcome(result).is_error is is_error


class TestSuccess:
    def test_a_result_completes_the_task_with_the_last_message(self) -> None:
        assert at(success(JobOutcome(RESULT, "done", Progress(3, 3)))) == Change(
            to="completed", status_message="done", progress=Progress(3, 3), at_ms=AT
        )

    def test_a_tool_error_completes_the_task_and_is_its_last_message(self) -> None:
        assert at(success(JobOutcome(TOOL_ERROR, "halfway"))) == Change(
            to="completed", is_error=True, status_message=TOOL_ERROR["content"][0]["text"], at_ms=AT
        )

    @pytest.mark.parametrize("content", [[], [{"type": "image"}], [{"type": "text", "text": ""}], None])
    def test_a_tool_error_without_text_keeps_the_last_message(self, content: object) -> None:
        outcome = JobOutcome({"content": content, "isError": True}, "halfway")
        assert success(outcome).status_message == "halfway"


class TestFailure:
    def test_a_json_rpc_error_is_kept_as_it_is(self) -> None:
        error = JobFailedError(-32001, "No such year", {"year": 1})
        assert at(failure("JobFailedError", error.args)) == Change(
            to="failed", error=RpcError(-32001, "No such year", {"year": 1}), status_message="No such year", at_ms=AT
        )

    def test_the_data_of_a_json_rpc_error_may_be_absent(self) -> None:
        assert failure("JobFailedError", (-32001, "No such year")).error == RpcError(-32001, "No such year")

    @pytest.mark.parametrize("name", sorted(FAILURE_REASONS))
    def test_a_known_exception_has_a_plain_reason(self, name: str) -> None:
        assert failure(name).error == RpcError(INTERNAL_ERROR, FAILURE_REASONS[name])

    def test_an_unknown_exceptions_text_stays_in_the_workers_log(self) -> None:
        assert failure("KeyError", ("a private word",)).error == RpcError(INTERNAL_ERROR, UNKNOWN_REASON)
        assert failure("KeyError", ("a private word",)).status_message == UNKNOWN_REASON

    def test_a_json_rpc_error_without_its_arguments_is_an_unknown_failure(self) -> None:
        assert failure("JobFailedError", ()).error == RpcError(INTERNAL_ERROR, UNKNOWN_REASON)

    def test_the_reasons_are_sentences_for_people(self) -> None:
        for reason in (*FAILURE_REASONS.values(), UNKNOWN_REASON, EXPIRED_REASON):
            assert reason[0].isupper()
            assert "Error" not in reason


class TestSettlement:
    @pytest.mark.parametrize(
        "stored",
        [
            None,
            StoredResult("PENDING", None),
            StoredResult("RECEIVED", None),
            StoredResult("STARTED", {"pid": 7}),
            StoredResult("RETRY", {"exc_type": "TimeoutError", "exc_message": []}),
        ],
        ids=str,
    )
    def test_a_job_that_has_not_ended_changes_no_record(self, stored: StoredResult | None) -> None:
        assert settlement(stored) is None

    def test_a_stored_result_completes_the_task(self) -> None:
        stored = StoredResult("SUCCESS", loads(dumps(JobOutcome(RESULT, "done"))))
        assert at(settlement(stored)) == Change(to="completed", status_message="done", at_ms=AT)

    @pytest.mark.parametrize("value", [None, "text", {"result": 3}])
    def test_an_unreadable_result_fails_the_task(self, value: object) -> None:
        change = settlement(StoredResult("SUCCESS", value))
        assert change is not None
        assert (change.to, change.error) == ("failed", RpcError(INTERNAL_ERROR, UNKNOWN_REASON))

    def test_a_stored_json_rpc_error_fails_the_task_with_that_error(self) -> None:
        stored = StoredResult("FAILURE", {"exc_type": "JobFailedError", "exc_message": [-32001, "No such year", None]})
        change = settlement(stored)
        assert change is not None
        assert (change.to, change.error) == ("failed", RpcError(-32001, "No such year"))

    @pytest.mark.parametrize(
        ("value", "reason"),
        [
            ({"exc_type": "WorkerLostError", "exc_message": ["x"]}, FAILURE_REASONS["WorkerLostError"]),
            ({"exc_type": "KeyError", "exc_message": "x"}, UNKNOWN_REASON),
            ({"exc_type": "JobFailedError", "exc_message": None}, UNKNOWN_REASON),
            ({"exc_type": "JobFailedError", "exc_message": ["no number", "text"]}, UNKNOWN_REASON),
            ({}, UNKNOWN_REASON),
            (None, UNKNOWN_REASON),
            ("text", UNKNOWN_REASON),
        ],
    )
    def test_any_other_stored_failure_fails_the_task_with_a_plain_reason(self, value: object, reason: str) -> None:
        change = settlement(StoredResult("FAILURE", value))
        assert change is not None
        assert (change.to, change.error) == ("failed", RpcError(INTERNAL_ERROR, reason))

    def test_a_revoked_job_cancels_the_task(self) -> None:
        change = settlement(StoredResult("REVOKED", {"exc_type": "TaskRevokedError", "exc_message": ["terminated"]}))
        assert change is not None
        assert change.to == "cancelled"
