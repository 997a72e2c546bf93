"""Servers of hosts whose result backends cannot hold tasks: ``rpc`` and ``disabled``."""

from celery import Celery

from mcp_celery import TaskServer


def on(backend: str) -> TaskServer:
    app = Celery("host", broker="memory://", backend=backend, set_as_current=False)
    server = TaskServer("keeps-nothing", task=True, celery=app)

    @server.tool()
    def add(a: int, b: int) -> int:
        return a + b

    return server


rpc = on("rpc://")
disabled = on("disabled://")
