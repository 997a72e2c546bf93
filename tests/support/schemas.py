"""The published JSON schema of the tasks extension, and checks against it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, cast

from jsonschema import Draft202012Validator

_SPEC = Path(__file__).parents[1] / "spec" / "ext-tasks.schema.json"


@cache
def _validator(definition: str) -> Draft202012Validator:
    schema = cast(dict[str, Any], json.loads(_SPEC.read_text()))
    # The bundle repeats `$schema` inside definitions, which makes each of them a resource with no `$defs` of its own.
    for one in schema["$defs"].values():
        one.pop("$schema", None)
    return Draft202012Validator({"$ref": f"#/$defs/{definition}", "$defs": schema["$defs"]})


def assert_valid(definition: str, instance: dict[str, Any]) -> None:
    """Check an object against a definition of the schema, for example ``CreateTaskResult``."""
    errors = [f"{error.json_path}: {error.message}" for error in _validator(definition).iter_errors(instance)]
    assert not errors, errors
