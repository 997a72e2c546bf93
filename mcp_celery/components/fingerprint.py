"""Fingerprints of components, by which a worker sees whether it runs the version that the server has.

A fingerprint is a digest of what decides how a request's arguments are read: the component's kind and identifier, its
declared version, and its input schema without the texts that are for people. So a new description changes no
fingerprint, and a new default does. The body of a component is not in it: where only the body changes its meaning,
``TaskConfig(version=…)`` says so.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Final, cast

from mcp_celery.engine import JSONObject
from mcp_celery.keys import TaskType

_DIGEST_CHARS: Final = 12
_MAX_VERSION_CHARS: Final = 40
_ODD: Final = re.compile(r"[^A-Za-z0-9._+]")
_FOR_PEOPLE: Final = frozenset({"title", "description", "examples", "deprecated", "$comment"})
"""Keywords of a schema that change neither which values it accepts nor how they are read."""
_BY_NAME: Final = frozenset({"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"})
"""Keywords whose value has a schema for each name, whatever the names are."""
_VALUES: Final = frozenset({"default", "const", "enum"})
"""Keywords whose value is data."""

_MOST_KNOWN: Final = 4_096
_known: dict[tuple[int, TaskType, str, str | None], tuple[JSONObject, str]] = {}
"""Fingerprints by the identity of the schema, which is kept so that no other object gets its identity."""


def fingerprint_of(task_type: TaskType, identifier: str, version: str | None, input_schema: JSONObject) -> str:
    """The fingerprint of a component.

    >>> fingerprint_of("tool", "add", None, {"properties": {"a": {"type": "integer", "title": "A"}}})
    'dc52f2a34103'
    >>> fingerprint_of("tool", "add", "2.1", {"properties": {"a": {"type": "integer"}}})
    '2.1-14b11e35ab45'

    Args:
        task_type: Its kind.
        identifier: What it is declared as.
        version: Its declared version, None where it declares none.
        input_schema: JSON schema of its arguments. One that does not change should be the same object each time: its
            digest is then made once.

    Returns:
        The version, where there is one, and a digest.
    """
    place = (id(input_schema), task_type, identifier, version)
    if (known := _known.get(place)) is not None:
        return known[1]
    shape = [task_type, identifier, version, _shape(input_schema)]
    text = json.dumps(shape, sort_keys=True, separators=(",", ":"), default=str)
    found = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:_DIGEST_CHARS]
    if version is not None:
        found = f"{_ODD.sub('_', version)[:_MAX_VERSION_CHARS]}-{found}"
    if len(_known) >= _MOST_KNOWN:
        _known.clear()
    _known[place] = input_schema, found
    return found


def _shape(schema: object) -> Any:
    """A schema without what is for people, and with ``required`` in an order of its own."""
    if isinstance(schema, list):
        return [_shape(one) for one in cast("list[object]", schema)]
    if not isinstance(schema, dict):
        return schema
    found: JSONObject = {}
    for keyword, value in cast(JSONObject, schema).items():
        if keyword in _FOR_PEOPLE:
            continue
        if keyword in _BY_NAME and isinstance(value, dict):
            found[keyword] = {name: _shape(one) for name, one in cast(JSONObject, value).items()}
        elif keyword in _VALUES:
            found[keyword] = value
        elif keyword == "required" and isinstance(value, list):
            found[keyword] = sorted(map(str, cast("list[object]", value)))
        else:
            found[keyword] = _shape(value)
    return found
