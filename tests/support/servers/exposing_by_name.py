"""A server without a Celery app of its own, which a function makes, and which exposes a job by its name."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from mcp_celery import TaskServer


class Numbers(BaseModel):
    left: int
    right: int


def build(**options: Any) -> TaskServer:
    """Make the server.

    Args:
        **options: As for the server.
    """
    server = TaskServer("exposing-by-name", task=True, **options)
    server.expose("sums.add", arguments=Numbers, description="Add two numbers.")

    @server.tool()
    def greet(name: str) -> str:
        return f"Hello, {name}"

    return server


server = build()
