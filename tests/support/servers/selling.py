"""A server with one tool, which notes each run."""

import os
from pathlib import Path

from mcp_celery import TaskServer

server = TaskServer("selling")


@server.tool(task=True)
def sell(path: str, item: int) -> int:
    """Sell an item."""
    with Path(path).open("a") as file:
        file.write(f"{item}\n")
        os.fsync(file.fileno())
    return item
