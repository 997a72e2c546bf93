"""The demo server for an ASGI host: ``uvicorn workers.asgi:app``. Copy it for a server of yours.

The app has a lifespan, which opens the server's connections and closes them: the host has to run it (``--lifespan on``
makes uvicorn say so where it cannot), and an app that mounts this one has to enter it.

Requests are answered that name this machine as their ``Host``, which keeps web pages elsewhere from reaching it by DNS
rebinding. A server with a public name says that name as well::

    server.streamable_http_app(
        transport_security=TransportSecuritySettings(
            allowed_hosts=["mcp.example.com"], allowed_origins=["https://mcp.example.com"]
        )
    )
"""

from __future__ import annotations

from workers.demo import server

app = server.streamable_http_app(host="127.0.0.1")
