"""Clients of a scripted server, in memory and over HTTP."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Protocol

import pytest
from mcp.client import Client

from mcp_celery.client import TasksClient, resilient_http
from tests.support.scripted import Scripted


class Connect(Protocol):
    def __call__(self, **options: Any) -> Any: ...


@pytest.fixture
def scripted() -> Scripted:
    return Scripted()


@pytest.fixture(params=["memory", "http"])
def connect(request: pytest.FixtureRequest, scripted: Scripted) -> Connect:
    """Opens a client of the scripted server; ``tasks`` are arguments of its extension."""

    @asynccontextmanager
    async def over(target: Any, tasks: dict[str, Any] | None = None, **options: Any) -> AsyncGenerator[Client]:
        async with Client(target, extensions=[TasksClient(**(tasks or {}))], **options) as client:
            yield client

    @asynccontextmanager
    async def open_client(**options: Any) -> AsyncGenerator[Client]:
        if request.param == "memory":
            async with over(scripted.server, **options) as client:
                yield client
        else:
            async with scripted.http() as http, over(resilient_http(http.url), **options) as client:
                yield client

    return open_client
