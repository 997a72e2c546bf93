"""Questions of a task to its caller, and answers to them. They are the same in both revisions; only their way differs.

::

 tool: ctx.elicit ──▶ worker/asking.py ── ask.lua ──▶ …:questions, status input_required ── hint ──▶ clients, tasks/get
                            ▲                                                                             │
                            │ hint, then heard.lua      …:answers ◀── answer.lua ── followup_jobs.py ◀── tasks/update
                            └───────────────────────────────┘                            │
 tool: InputRequiredResult ── park.lua ──▶ leg + 1, attempt + 1; the job ends            │ the last answer of a parked
                                           job {id}!2 starts with the answers ◀──────────┘ task: due, then published

A question is *awaited* by a job that goes on where it stood, or was *returned* by a job that has ended. A question's
key is never used again in its task's life (SEP-2663, "Input requests"), so an answer belongs to one question, or to
none.

- Questions and answers are two hashes beside the record, with its lifetime. Each change is one script with the status:
  while a question is open the task is ``input_required``, and the end of the task deletes both hashes.
- An awaited question belongs to its job. The job withdraws it when the tool stops waiting; it is deleted when the job
  dies. The job learns of the answer over the bus, one connection for each event loop of a worker.
- A returned question belongs to the task. ``park.lua`` increments leg and attempt, so that results, signals and second
  deliveries of the job that has just ended are dropped, and it removes the claim, because there is no job.
- The next leg gets the answers as ``inputResponses`` and ``requestState`` of the same request, so a tool cannot
  distinguish a leg from a round of the SDK's own multi-round-trip.
- The script that takes the last answer also enters the next leg in the index ``due``; then it is published. If the
  process dies in between, the reaper publishes the leg; duplicate messages start only once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, cast

from mcp_types import (
    ClientCapabilities,
    CreateMessageResult,
    CreateMessageResultWithTools,
    ElicitationCapability,
    ElicitResult,
    FormElicitationCapability,
    ListRootsResult,
    RootsCapability,
    SamplingCapability,
    SamplingToolsCapability,
    UrlElicitationCapability,
)
from mcp_types.methods import validate_client_result
from pydantic import BaseModel, ValidationError

from mcp_celery.common.jsonable import json_text
from mcp_celery.common.schemas import UnusableSchemaError, first_error, require_usable
from mcp_celery.context import TaskContextSnapshot
from mcp_celery.engine.ids import new_call
from mcp_celery.engine.record import Changed, JSONObject, Question, RpcError
from mcp_celery.errors import AnswersTooLargeError, InvalidAnswerError, JobFailedError

ELICIT: Final = "elicitation/create"
SAMPLE: Final = "sampling/createMessage"
LIST_ROOTS: Final = "roots/list"
ASKABLE: Final = frozenset({ELICIT, SAMPLE, LIST_ROOTS})
"""The requests that a server may make of its caller in the middle of its work."""

Answer = JSONObject | RpcError
"""The result of a request to the caller in wire form, or the error that its client answered with."""


@dataclass(frozen=True, slots=True)
class Extension:
    """How a wait for input may lengthen a task's life.

    Attributes:
        until_ms: Until when the task has to live at least, in ms since the epoch.
        max_ttl_ms: The longest time to live, counted from the task's creation.
    """

    until_ms: int
    max_ttl_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """Identifies the asking attempt: questions of superseded attempts are rejected.

    Attributes:
        attempt: The attempt of the task that the job is of.
        at_ms: When it asks.
        extension: How its wait may lengthen the task's life, None for not at all.
        call: As in :class:`mcp_celery.engine.Change`.
    """

    attempt: int
    at_ms: int
    extension: Extension | None = None
    call: str = field(default_factory=new_call, compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class NextLeg:
    """The state for the next job of a task, besides the answers.

    Attributes:
        leg: Which job of the task it is, from 2.
        job_id: Its Celery id.
        request_state: What the tool wants back, None where it said nothing.
    """

    leg: int
    job_id: str
    request_state: str | None


@dataclass(frozen=True, slots=True)
class Answered:
    """A store's reply to answers.

    Attributes:
        changed: The record, and whether any of the answers was taken.
        is_due: Whether these answers were the last, and the next leg is now to be published.
    """

    changed: Changed
    is_due: bool


def check_answers(
    questions: Sequence[Question], responses: Mapping[str, object], *, version: str, max_bytes: int
) -> dict[str, Answer]:
    """The answers to open questions among what a client sent; every other key is left out.

    Args:
        questions: The open ones.
        responses: What the client sent: results in wire form, or :class:`RpcError`.
        version: The protocol version at which workers read answers.
        max_bytes: How large all of it may be together, as JSON.

    Raises:
        InvalidAnswerError: One of them does not fit its question; then none is taken.
        AnswersTooLargeError: All of them together are too large.
    """
    asked = {question.key: question for question in questions}
    taken = {key: response for key, response in responses.items() if key in asked}
    # Before anything is looked at more closely: what a check costs grows with the size.
    if sum(len(encode_answer(cast(Answer, response))) for response in taken.values()) > max_bytes:
        raise AnswersTooLargeError(max_bytes)
    return {key: _checked(asked[key], response, version) for key, response in taken.items()}


def _checked(question: Question, response: object, version: str) -> Answer:
    if isinstance(response, RpcError):
        return response
    if not isinstance(response, dict):
        raise InvalidAnswerError(question.key, f"expected the result of {question.method}, an object")
    answer = cast(JSONObject, response)
    if question.method == ELICIT:
        answer = _elicited(answer)
    try:
        validate_client_result(question.method, version, answer)
        _result_model(question).model_validate(answer, by_name=False)
    except ValidationError as error:
        wrong = error.errors(include_input=False, include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in wrong["loc"])
        raise InvalidAnswerError(
            question.key, f"it is no result of {question.method}: {place}: {wrong['msg']}"
        ) from None
    if question.method == ELICIT and answer["action"] == "accept" and question.params.get("mode") != "url":
        _check_content(question, answer)
    return answer


def _elicited(answer: JSONObject) -> JSONObject:
    """An answer to an elicitation. A field left open is left out; only who accepts says something."""
    content = answer.get("content")
    if answer.get("action") != "accept" or not isinstance(content, dict):
        return {name: value for name, value in answer.items() if name != "content" or value is not None}
    filled = {name: value for name, value in cast(JSONObject, content).items() if value is not None}
    return {**answer, "content": filled}


def _result_model(question: Question) -> type[BaseModel]:
    if question.method == SAMPLE:
        with_tools = "tools" in question.params or "toolChoice" in question.params
        return CreateMessageResultWithTools if with_tools else CreateMessageResult
    return ElicitResult if question.method == ELICIT else ListRootsResult


def _check_content(question: Question, answer: JSONObject) -> None:
    try:
        wrong = first_error(question.params.get("requestedSchema") or {}, answer.get("content"))
    except UnusableSchemaError as error:
        raise InvalidAnswerError(question.key, f"its requestedSchema cannot be used: {error}") from None
    if wrong is not None:
        place = ".".join(["content", *(str(part) for part in wrong.absolute_path)])
        raise InvalidAnswerError(question.key, f"{place} does not satisfy {wrong.validator}: {wrong.validator_value}")


def missing_capability(
    declared: ClientCapabilities, method: str, params: JSONObject
) -> tuple[str, ClientCapabilities | None]:
    """The capability that a client has to declare for a question.

    Args:
        declared: What it declares.
        method: One of ``ASKABLE``.
        params: Parameters of the request.

    Returns:
        The capability's name, and the capability where the client did not declare it.
    """
    if method == ELICIT:
        elicitation = declared.elicitation
        if params.get("mode") == "url":
            needed = ElicitationCapability(url=UrlElicitationCapability())
            can = elicitation is not None and elicitation.url is not None
            return "URL elicitation", None if can else ClientCapabilities(elicitation=needed)
        # A bare `elicitation: {}`, the only shape before there were modes, means forms.
        can = elicitation is not None and (elicitation.form is not None or elicitation.url is None)
        needed = ElicitationCapability(form=FormElicitationCapability())
        return "form elicitation", None if can else ClientCapabilities(elicitation=needed)
    if method == SAMPLE:
        with_tools = "tools" in params or "toolChoice" in params
        can = declared.sampling is not None and (not with_tools or declared.sampling.tools is not None)
        sampling = SamplingCapability(tools=SamplingToolsCapability() if with_tools else None)
        name = "sampling.tools" if with_tools else "sampling"
        return name, None if can else ClientCapabilities(sampling=sampling)
    return "roots", None if declared.roots is not None else ClientCapabilities(roots=RootsCapability())


def require_usable_form(params: JSONObject) -> None:
    """Refuse a request whose form no client could fill in. A request without a form passes.

    Raises:
        UnusableSchemaError: With the reason.
    """
    require_usable(params.get("requestedSchema", {}))


def encode_question(question: Question) -> str:
    """A question as stores keep it."""
    return json_text(question.request)


def decode_question(key: str, text: str) -> Question:
    """Read :func:`encode_question`'s text."""
    found = cast(JSONObject, json.loads(text))
    return Question(key, found["method"], found.get("params", {}))


def encode_answer(answer: Answer) -> str:
    """An answer as stores keep it."""
    if isinstance(answer, RpcError):
        return json.dumps({"error": [answer.code, answer.message, answer.data]})
    return json.dumps({"result": answer})


def decode_answer(text: str) -> Answer:
    """Read :func:`encode_answer`'s text."""
    found = cast(JSONObject, json.loads(text))
    return RpcError(*found["error"]) if "error" in found else cast(JSONObject, found["result"])


def leg_key(leg: int, name: str) -> str:
    """The key of a question that the job of a leg returned under a name of its own, which it may use again later."""
    return f"{leg}.{name}"


def leg_answers(leg: int, answers: Mapping[str, Answer]) -> dict[str, JSONObject]:
    """The answers to what the job of a leg returned, under its own names.

    Raises:
        JobFailedError: The client answered with an error: the next leg cannot start, and the task ends with it.
    """
    mark = leg_key(leg, "")
    found: dict[str, JSONObject] = {}
    for key, answer in answers.items():
        if not key.startswith(mark):
            continue
        if isinstance(answer, RpcError):
            raise JobFailedError(answer.code, answer.message, answer.data)
        found[key.removeprefix(mark)] = answer
    return found


def next_round(
    snapshot: TaskContextSnapshot, answers: Mapping[str, JSONObject], request_state: str | None
) -> TaskContextSnapshot:
    """The request as its caller would send it again: with its answers, and the state that the tool wants back."""
    params = {name: value for name, value in snapshot.params.items() if name not in ("inputResponses", "requestState")}
    if answers:
        params["inputResponses"] = dict(answers)
    if request_state is not None:
        params["requestState"] = request_state
    return replace(snapshot, params=params)
