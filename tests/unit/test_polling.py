"""What clients that know no tasks are shown of one."""

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_celery.engine import Progress
from mcp_celery.protocol.plain_clients.polling import TaskState, admitting_a_task

STATE = TaskState(task_id="x", status="working", next_step="wait").model_dump(mode="json", exclude_none=True)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize(
    ("schema", "fits", "does_not"),
    [
        ({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}, {"a": 1}, {"a": "b"}),
        (
            {
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "$defs": {"Node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}}},
                "$ref": "#/$defs/Node",
                "type": "object",
            },
            {"next": {"next": {}}},
            {"next": 1},
        ),
        ({"type": "array", "items": {"type": "integer"}}, [1], ["a"]),
    ],
)
def test_an_output_schema_admits_the_tools_output_or_a_task_and_nothing_else(
    schema: dict[str, object], fits: object, does_not: object
) -> None:
    admitting = admitting_a_task(schema)
    jsonschema.Draft202012Validator.check_schema(admitting)
    jsonschema.validate(fits, admitting)
    jsonschema.validate(STATE, admitting)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(does_not, admitting)
    assert ("type" in admitting) == (schema["type"] == "object")


@given(NUMBERS, st.none() | NUMBERS, st.none() | st.text(min_size=1))
def test_what_a_component_says_with_its_progress_is_read_back(
    value: float, total: float | None, message: str | None
) -> None:
    progress = Progress(value, total)
    told = progress.told_with(message)
    assert progress.said_in(told) == (None if message == progress.count else message)
    assert progress.said_in(None) is None
