"""Serving over HTTP, with limits for everything that the server reads before it knows who the client is.

`http_app` makes the ASGI app that ``mcp-celery serve`` serves. `RequestLimits` limits the requests of any ASGI app.
`BoundedHttpProtocol` limits, in uvicorn, what comes before an app is called. `EndingStreams` ends open streams when the
server ends.
"""

from mcp_celery.web.app import http_app
from mcp_celery.web.limits import HttpLimits, RequestLimits
from mcp_celery.web.protocol import BoundedHttpProtocol
from mcp_celery.web.shutdown import EndingStreams

__all__ = ["BoundedHttpProtocol", "EndingStreams", "HttpLimits", "RequestLimits", "http_app"]
