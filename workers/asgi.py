"""The server for an ASGI host: ``uvicorn workers.asgi:app --http mcp_celery.web:BoundedHttpProtocol --ws none``.

The app has a lifespan, which opens the server's connections and closes them: the host has to run it (``--lifespan on``
makes uvicorn say so where it cannot), and an app that mounts this one has to enter it.

Requests are answered that name this machine as their ``Host``, which keeps web pages elsewhere from reaching it by DNS
rebinding. A server with a public name has it in ``MCP_CELERY_ALLOWED_HOSTS=mcp.example.com``, and web pages that may
use it in ``MCP_CELERY_ALLOWED_ORIGINS=https://app.example.com``.

The app answers probes at ``/healthz`` and ``/readyz``, which ask for no token and no ``Host`` (docs/monitoring.md).

The app limits headers and bodies (``MCP_CELERY_HTTP_…``). An app never sees unfinished headers and the number of
connections, so ``--http`` names a protocol that limits them.
"""

from __future__ import annotations

from mcp_celery.web import http_app
from workers.demo import server

app = http_app(server)
