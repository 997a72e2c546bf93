"""The published JSON schemas, and checks against them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, Final, cast

from jsonschema import Draft202012Validator

_SPEC = Path(__file__).parents[1] / "spec"
EXT_TASKS: Final = "ext-tasks"
MCP_2025_11_25: Final = "mcp-2025-11-25"
COMPOSE: Final = "compose"
KUBERNETES_OBJECTS: Final = "kubernetes"


@cache
def _validator(definition: str, schema: str) -> Draft202012Validator:
    bundle = cast(dict[str, Any], json.loads((_SPEC / f"{schema}.schema.json").read_text()))
    # A bundle may repeat `$schema` inside definitions, which makes each a resource with no `$defs` of its own.
    for one in bundle["$defs"].values():
        one.pop("$schema", None)
    return Draft202012Validator({"$ref": f"#/$defs/{definition}", "$defs": bundle["$defs"]})


def assert_valid(definition: str, instance: dict[str, Any], schema: str = EXT_TASKS) -> None:
    """Check an object against a definition of a schema, for example ``CreateTaskResult``."""
    errors = [f"{error.json_path}: {error.message}" for error in _validator(definition, schema).iter_errors(instance)]
    assert not errors, errors
