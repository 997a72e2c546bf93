"""How long a user at a terminal waits: for the help, for a call's first request, for the first answer of ``dev``."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from bench.client import Client
from bench.processes import free_port, is_listening, process
from bench.run import Findings, Row, Run
from bench.stats import median
from bench.systems import OURS

COMMAND: Final = (sys.executable, "-m", "mcp_celery")
SERVER: Final = "bench.apps.ours:server"


async def start(run: Run) -> Findings:
    """Seconds from the start of the command, with everything compiled and in the file cache; medians."""
    rounds = run.options.size(5, 2)
    measures = (
        ("`mcp-celery --help`", _help),
        ("`mcp-celery call`: its first request", _first_request),
        ("`mcp-celery dev`: its first call answered", _first_answer),
    )
    rows: list[Row] = []
    for what, measure in measures:
        await measure()  # which compiles what has not been, and fills the file cache
        seconds = {OURS: median([await measure() for _ in range(rounds)])}
        rows.append(Row(what, "s", seconds, seconds, "s", "less"))
    return Findings(rows)


async def _help() -> float:
    began = time.perf_counter()
    await asyncio.to_thread(subprocess.run, [*COMMAND, "--help"], check=True, stdout=subprocess.DEVNULL, env=_env())
    return time.perf_counter() - began


async def _first_request() -> float:
    asked = asyncio.Event()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        asked.set()
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp"
        began = time.perf_counter()
        calling = await asyncio.create_subprocess_exec(
            *(*COMMAND, "call", url, "noop"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_env()
        )
        try:
            async with asyncio.timeout(60):
                await asked.wait()
            return time.perf_counter() - began
        finally:
            with suppress(ProcessLookupError):
                calling.kill()
            await calling.wait()


async def _first_answer() -> float:
    return await asyncio.to_thread(lambda: asyncio.run(_dev()))


async def _dev() -> float:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        argv = [*COMMAND, "dev", SERVER, "--port", str(port), "--data-dir", folder]
        began = time.perf_counter()
        with process(argv, _env(), Path(folder, "dev.log"), lambda: is_listening(port)):
            async with Client(f"http://127.0.0.1:{port}/mcp") as client:
                task_id, _ = await client.submit("noop")
                await client.finish(task_id, 0.02)
                return time.perf_counter() - began


def _env() -> dict[str, str]:
    """This one without settings, and with compiled modules kept, as they are wherever a package is installed."""
    unwanted = {"PYTHONDONTWRITEBYTECODE"}
    return {
        name: value for name, value in os.environ.items() if name not in unwanted and not name.startswith("MCP_CELERY_")
    }
