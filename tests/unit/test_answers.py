"""Which answers fit which question."""

from __future__ import annotations

from functools import partial
from typing import Final

import pytest
from mcp_types import ElicitRequestFormParams
from mcp_types.version import LATEST_HANDSHAKE_VERSION
from pydantic import BaseModel, Field

from mcp_celery.common.schemas import UnusableSchemaError
from mcp_celery.engine import ELICIT, LIST_ROOTS, SAMPLE, JSONObject, Question, RpcError, require_usable_form
from mcp_celery.engine import questions as engine_questions
from mcp_celery.engine.questions import decode_answer, decode_question, encode_answer, encode_question
from mcp_celery.errors import INVALID_PARAMS, AnswersTooLargeError, InvalidAnswerError

check_answers: Final = partial(engine_questions.check_answers, version=LATEST_HANDSHAKE_VERSION)

ENOUGH = 1_000_000


class Order(BaseModel):
    meal: str = Field(min_length=2)
    count: int = 1
    spicy: bool = False


FORM = Question(
    "form",
    ELICIT,
    ElicitRequestFormParams(message="Your order?", requested_schema=Order.model_json_schema()).model_dump(
        by_alias=True, mode="json", exclude_none=True
    ),
)
URL = Question("url", ELICIT, {"mode": "url", "message": "Sign in", "url": "https://pay.example", "elicitationId": "1"})
SAMPLING = Question("sampling", SAMPLE, {"messages": [], "maxTokens": 10})
SAMPLING_WITH_TOOLS = Question("sampling", SAMPLE, {"messages": [], "maxTokens": 10, "tools": []})
ROOTS = Question("roots", LIST_ROOTS, {})
SAMPLED: JSONObject = {"role": "assistant", "content": {"type": "text", "text": "42"}, "model": "m"}


def checked(question: Question, answer: object) -> object:
    return check_answers([question], {question.key: answer}, max_bytes=ENOUGH)[question.key]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (FORM, {"action": "accept", "content": {"meal": "soup"}}),
        (FORM, {"action": "accept", "content": {"meal": "soup", "count": 2, "spicy": True, "extra": "said too"}}),
        (FORM, {"action": "decline"}),
        (FORM, {"action": "cancel"}),
        (URL, {"action": "accept"}),
        (URL, {"action": "decline"}),
        (SAMPLING, SAMPLED),
        (SAMPLING_WITH_TOOLS, {**SAMPLED, "content": [SAMPLED["content"]]}),
        (ROOTS, {"roots": []}),
        (ROOTS, {"roots": [{"uri": "file:///home", "name": "home"}]}),
        (ROOTS, RpcError(-32603, "no")),
    ],
)
def test_an_answer_that_fits_is_taken_as_it_came(question: Question, answer: object) -> None:
    assert checked(question, answer) == answer


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        (FORM, {"action": "accept", "content": {}}, "content does not satisfy required: ['meal']"),
        (FORM, {"action": "accept"}, "content does not satisfy type: object"),
        (FORM, {"action": "accept", "content": {"meal": "x"}}, "content.meal does not satisfy minLength: 2"),
        (FORM, {"action": "accept", "content": {"meal": "soup", "count": "2"}}, "content.count does not satisfy type"),
        (FORM, {"action": "perhaps"}, "action"),
        (FORM, {}, "action"),
        (FORM, "soup", "expected the result of elicitation/create, an object"),
        (FORM, None, "an object"),
        (FORM, {"action": "accept", "content": {"meal": {"nested": 1}}}, "no result of elicitation/create"),
        (URL, {"action": "open"}, "action"),
        (SAMPLING, {"role": "assistant", "content": {"type": "text", "text": "42"}}, "model"),
        (SAMPLING, {**SAMPLED, "content": [SAMPLED["content"]]}, "content"),
        (SAMPLING, {"action": "accept"}, "no result of sampling/createMessage"),
        (ROOTS, {"roots": [{"uri": "https://not.a.file"}]}, "roots"),
        (ROOTS, {"action": "cancel"}, "roots"),
    ],
)
def test_an_answer_that_does_not_fit_is_refused(question: Question, answer: object, reason: str) -> None:
    with pytest.raises(InvalidAnswerError, match="was not taken") as refused:
        checked(question, answer)
    assert reason in str(refused.value)
    assert refused.value.code == INVALID_PARAMS


def test_a_refusal_quotes_nothing_of_the_answer() -> None:
    for content in ({"meal": "soup", "count": "my-secret"}, {"meal": {"my-secret": 1}}, {"meal": ["my-secret", 1]}):
        with pytest.raises(InvalidAnswerError) as refused:
            checked(FORM, {"action": "accept", "content": content})
        assert "my-secret" not in str(refused.value)


def test_a_field_left_open_is_left_out() -> None:
    answer = {"action": "accept", "content": {"meal": "soup", "count": None}}
    assert checked(FORM, answer) == {"action": "accept", "content": {"meal": "soup"}}
    assert checked(FORM, {"action": "cancel", "content": None}) == {"action": "cancel"}


def test_keys_without_a_question_are_left_out_whatever_they_hold() -> None:
    answers = check_answers([ROOTS], {"unknown": "nonsense", "roots": {"roots": []}}, max_bytes=ENOUGH)
    assert answers == {"roots": {"roots": []}}


def test_one_wrong_answer_refuses_all_of_them() -> None:
    with pytest.raises(InvalidAnswerError):
        check_answers([FORM, ROOTS], {"roots": {"roots": []}, "form": {"action": "?"}}, max_bytes=ENOUGH)


def test_answers_are_bounded_together() -> None:
    questions = [Question(key, ELICIT, FORM.params) for key in ("one", "two")]
    answers: dict[str, object] = {key: {"action": "accept", "content": {"meal": "x" * 600}} for key in ("one", "two")}
    assert check_answers(questions, answers, max_bytes=2_000)
    with pytest.raises(AnswersTooLargeError, match="1000 bytes"):
        check_answers(questions, answers, max_bytes=1_000)


@pytest.mark.parametrize("question", [FORM, URL, SAMPLING, ROOTS])
def test_stored_questions_are_read_as_they_were(question: Question) -> None:
    assert decode_question(question.key, encode_question(question)) == question


@pytest.mark.parametrize("answer", [SAMPLED, RpcError(-32601, "no", {"a": 1}), {"action": "accept", "content": {}}])
def test_stored_answers_are_read_as_they_were(answer: JSONObject | RpcError) -> None:
    assert decode_answer(encode_answer(answer)) == answer


def test_a_form_that_cannot_be_used_is_refused() -> None:
    require_usable_form(FORM.params)
    require_usable_form(URL.params)
    with pytest.raises(UnusableSchemaError):
        require_usable_form({"requestedSchema": {"type": "objekt"}})


def test_an_answer_to_a_form_that_cannot_be_used_is_refused() -> None:
    form = Question("form", ELICIT, {"message": "?", "requestedSchema": {"$ref": "http://127.0.0.1:9/x.json"}})
    with pytest.raises(InvalidAnswerError, match="nothing is fetched"):
        checked(form, {"action": "accept", "content": {"meal": "soup"}})


def test_the_size_of_an_answer_is_looked_at_before_its_content() -> None:
    """A value that is checked may be as large as the limit, and no larger."""
    with pytest.raises(AnswersTooLargeError):
        check_answers([FORM], {"form": {"action": "?", "content": "x" * 2_000}}, max_bytes=1_000)
