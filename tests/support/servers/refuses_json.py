"""A server whose worker accepts no JSON, by its operator's mistake."""

from mcp_celery import TaskServer
from mcp_celery.default_app import default_app

server = TaskServer("refuses-json", task=True)
default_app.conf.accept_content = ["yaml"]


@server.tool()
def add(a: int, b: int) -> int:
    return a + b
