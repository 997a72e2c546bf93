"""A server on the app of this package that offers a Celery job of somebody else's."""

from __future__ import annotations

from pydantic import BaseModel

from mcp_celery import TaskServer


class Order(BaseModel):
    """The job's arguments."""

    number: int


server = TaskServer("exposes", task=True)
server.expose("theirs.order", name="order", arguments=Order, description="Order something.")
