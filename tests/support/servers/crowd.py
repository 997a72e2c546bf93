"""A server whose tools show whether they run at the same time. They meet through files, not through the store."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from celery import Celery

from mcp_celery import Settings, TaskServer

LOOK_EVERY_SECONDS = 0.02


def note(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(line + "\n")


async def until(path: Path) -> None:
    while not path.exists():  # noqa: ASYNC110, ASYNC240 - files are what the test and the worker share
        await asyncio.sleep(LOOK_EVERY_SECONDS)


def build(celery: Celery | None = None, settings: Settings | None = None) -> TaskServer:
    server = TaskServer("crowd", task=True, celery=celery, settings=settings, log_level="WARNING")

    @server.tool()
    async def meet(folder: str, number: int, others: int) -> int:
        here = Path(folder)
        (here / f"arrived-{number}").touch()
        while len(list(here.glob("arrived-*"))) < others:  # noqa: ASYNC110, ASYNC240 - see above
            await asyncio.sleep(0.1)
        return os.getpid()

    @server.tool()
    async def tick(path: str, until: str) -> str:
        while not Path(until).exists():  # noqa: ASYNC240 - see above
            note(Path(path), str(time.monotonic()))
            await asyncio.sleep(LOOK_EVERY_SECONDS)
        return "enough"

    @server.tool()
    async def leave(path: str) -> str:
        note(Path(path + ".here"), "here")
        await until(Path(path))
        return "left"

    @server.tool()
    def block(seconds: float) -> str:
        time.sleep(seconds)
        return "blocked"

    return server


server: Any = build()
