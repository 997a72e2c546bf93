"""A server on the app of this package, which has Celery tasks of its own besides."""

from __future__ import annotations

from collections.abc import Sequence

from mcp_celery import TaskServer
from mcp_celery.default_app import default_app

server = TaskServer("plain", task=True)


@server.tool()
async def add(a: int, b: int) -> int:
    """A tool."""
    return a + b


@default_app.task(name="plain.double")
def double(number: int) -> int:
    """A task that is no tool."""
    if number < 0:
        raise ValueError("negative")
    return 2 * number


@default_app.task(name="plain.total")
def total(numbers: Sequence[int]) -> int:
    """The end of a chord."""
    return sum(numbers)
