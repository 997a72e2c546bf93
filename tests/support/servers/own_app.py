"""A server that brings a Celery app of its own."""

from celery import Celery

from mcp_celery import TaskServer

app = Celery("host", broker="memory://", backend="cache+memory://", set_as_current=False)
server = TaskServer("own-app", task=True, celery=app)


@server.tool()
def add(a: int, b: int) -> int:
    return a + b
