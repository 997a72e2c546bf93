"""The project's MCP server."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

import django  # pyright: ignore[reportMissingTypeStubs]

from mcp_celery import TaskServer
from tests.support.django_host.celery import app

django.setup()  # for the server's process; a worker of Celery's has done it

from django import db  # noqa: E402  # pyright: ignore[reportMissingTypeStubs]

from tests.support.django_host.models import Order  # noqa: E402
from tests.support.django_host.tasks import whose  # noqa: E402

Function = TypeVar("Function", bound=Callable[..., Any])
server = TaskServer(os.environ["HOST_NAME"], task=True, celery=app)


def with_database(fn: Function) -> Function:
    """Do for the connections of a tool's thread what Django does for those of a request."""

    @functools.wraps(fn)
    def run(*args: Any, **arguments: Any) -> Any:
        db.close_old_connections()
        try:
            return fn(*args, **arguments)
        finally:
            db.close_old_connections()

    return cast(Function, run)


@server.tool()
@with_database
def count_orders(year: int) -> int:
    """Counts in the database, and adds one."""
    Order.objects.create(year=year)
    return int(Order.objects.filter(year=year).count())


@server.tool()
def is_connected() -> bool:
    """Whether this tool's thread, in the foreground the one of the tool before, still holds a connection."""
    return db.connection.connection is not None


@server.tool(task=False)
def whose_jobs() -> str:
    """To whom a shared job belongs, seen by a thread of the server."""
    return str(whose.app.main)
