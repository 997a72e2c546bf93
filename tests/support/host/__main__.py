"""What a process of theirs does, for tests that cannot import the project: its settings come from the environment.

``conf``: the settings of a worker; ``seen``: the jobs whose ends it has seen; ``serve``: the settings of a process that
imports the server and submits a task; ``plain``: of one that does not. Each prints JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from tests.support.host import jobs


async def submit() -> None:
    """Import the server, and submit a task as its own process would."""
    from mcp_celery import TaskMeta  # noqa: PLC0415 - what it does to the app is what is looked at
    from mcp_celery.server.task_server import tasks_of  # noqa: PLC0415
    from tests.support.host.mcp import server  # noqa: PLC0415

    async with tasks_of(server).running():
        await server.call_tool("add", {"a": 1, "b": 1}, task_meta=TaskMeta())


def main(what: str) -> Any:
    if what == "serve":
        asyncio.run(submit())
    if what in ("serve", "plain"):
        return jobs.configuration()
    job: Any = {"conf": jobs.conf, "seen": jobs.seen}[what]
    return job.apply_async().get(timeout=60)


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))  # noqa: T201
