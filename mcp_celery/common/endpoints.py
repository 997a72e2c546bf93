"""Endpoints for operators, such as ``/healthz``: a table of paths, and the two ways in which it is served.

The table is served as routes of an app that serves other paths, too (:func:`routes`), or on a port of its own
(:class:`mcp_celery.common.endpoint_listener.EndpointListener`). Another endpoint is one more entry of the table.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

HEALTHZ: Final = "/healthz"
"""Path that says whether the process serves."""
READYZ: Final = "/readyz"
"""Path that says whether the process can do its work."""
METRICS: Final = "/metrics"
"""Path of the metrics in Prometheus' format."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The response of an endpoint.

    Attributes:
        status: HTTP status.
        body: The body.
        media_type: Its media type, with the charset.
    """

    status: HTTPStatus
    body: bytes
    media_type: str


Endpoint = Callable[[], Awaitable[Answer]]
"""Makes the response to a GET request. It sees nothing of the request, which any client may send."""
Endpoints = Mapping[str, Endpoint]
"""Endpoints by path."""


def states(values: Mapping[str, str | float], *, ok: bool) -> Answer:
    """Answer a probe with states.

    Args:
        values: States and ages by name. They hold neither addresses nor texts of errors: every client may ask.
        ok: Whether the status is 200; otherwise it is 503.
    """
    status = HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE
    return Answer(status, f"{json.dumps(values)}\n".encode(), "application/json")


def routes(endpoints: Endpoints) -> list[Route]:
    """Make the routes of a table for a Starlette app. They answer GET and HEAD.

    Args:
        endpoints: The table.
    """
    return [
        Route(path, _respond_with(one), methods=["GET"], include_in_schema=False) for path, one in endpoints.items()
    ]


def _respond_with(endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    async def respond(_request: Request) -> Response:
        answer = await endpoint()
        headers = {"cache-control": "no-store"}
        return Response(answer.body, answer.status, headers, answer.media_type)

    return respond
