"""What Flower and Celery's events show of a job's arguments: names, and only those values that a component declares."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from mcp_celery.config import TaskConfig

HIDDEN: Final = "<hidden>"


def shown_arguments(params: Mapping[str, Any], config: TaskConfig) -> str:
    """What Flower and Celery's events show of a request's arguments: every name, but only the values that may be seen.

    >>> shown_arguments({"arguments": {"path": "/a", "note": "private"}}, TaskConfig(show_arguments=["path"]))
    "{'path': '/a', 'note': <hidden>}"
    """
    arguments: Mapping[str, Any] = params.get("arguments") or {}
    shown = [
        f"{name!r}: {_short(value) if name in config.show_arguments else HIDDEN}" for name, value in arguments.items()
    ]
    return "{" + ", ".join(shown) + "}"


def names_in(template: str) -> frozenset[str]:
    """The arguments of a resource's URI template.

    >>> sorted(names_in("reports://{year}/{+path}{?page,size*}"))
    ['page', 'path', 'size', 'year']
    """
    return frozenset(
        name.rstrip("*").partition(":")[0]
        for expression in re.findall(r"\{[+#./;?&]?([^{}]*)\}", template)
        for name in expression.split(",")
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "…"
