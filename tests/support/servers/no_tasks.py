"""A server none of whose tools may run as a task."""

from mcp_celery import TaskServer

server = TaskServer("no-tasks")


@server.tool()
def add(a: int, b: int) -> int:
    return a + b
