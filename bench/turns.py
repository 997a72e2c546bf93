"""``python -m bench.turns``: how soon a caller's first task starts behind the burst of another, and what that costs.

A server in this process, and one worker with eight slots, with ``MCP_CELERY_FAIR=scope`` and without.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import click
from celery import Celery

from bench.processes import process, raise_on_sigterm
from mcp_celery import Settings, TaskConfig, TaskContextSnapshot, TaskServer
from mcp_celery.embedded import EmbeddedStore
from mcp_celery.engine import Caller, Submission, TaskEngine, TaskRecord
from mcp_celery.server.task_server import tasks_of

NAME: Final = "bench-turns"
JOB_SECONDS: Final = 0.5
SLOTS: Final = 8
LATER_SECONDS: Final = 2.0
"""How long after the burst the other caller comes."""
TOGETHER: Final = 50
A: Final = Caller("a|a", "https://issuer.example", requestor="a")
B: Final = Caller("b|b", "https://issuer.example", requestor="b")


async def nap(seconds: float) -> str:
    """Wait, and say when that began, in seconds since the epoch."""
    began = time.time()
    await asyncio.sleep(seconds)
    return str(began)


def build(settings: Settings | None = None) -> TaskServer:
    """The server: for this process, with settings of a run; for the worker, with those of its environment."""
    app = None
    if settings is not None:
        app = Celery(NAME, set_as_current=False)
        app.conf.update({**settings.celery_broker, **settings.celery_results})
    server = TaskServer(NAME, settings=settings, celery=app)
    server.add_tool(nap, task=True)
    return server


server = build()


@click.command()
@click.option("--tasks", default=1_000, show_default=True, help="How many tasks the first caller has queued.")
@click.option("--broker", help="URL of the broker. Default: the embedded store.")
def main(*, tasks: int, broker: str | None) -> None:
    """Measure with turns of callers and without."""
    raise_on_sigterm()
    with tempfile.TemporaryDirectory(prefix="mcpc-") as folder, EmbeddedStore.open(Path(folder) / "data") as store:
        for fair in ("scope", ""):
            log = Path(folder) / f"worker{fair}.log"
            variables = {"REDIS_URL": store.url, "FAIR": fair, "NAMESPACE": f"{NAME}{'-fair' if fair else ''}"}
            if broker is not None:
                variables["BROKER_URL"] = broker
            settings = Settings.load(**{name.lower(): value for name, value in variables.items() if value})
            environment = {
                **os.environ,
                **{f"MCP_CELERY_{name}": value for name, value in variables.items()},
                "MCP_CELERY_SERVER": "bench.turns:server",
            }
            command = [sys.executable, "-m", "celery", "-A", "mcp_celery", "worker", "-c", str(SLOTS), "-l", "INFO"]
            with process(command, environment, log, lambda log=log: " ready." in log.read_text(errors="replace")):
                late, rate = asyncio.run(_measure(settings, tasks))
            click.echo(
                f"MCP_CELERY_FAIR={fair or '(unset)'}: behind {tasks} tasks of another caller a task starts after "
                f"{late:.2f} s ({late / JOB_SECONDS:.2f} job lengths); {rate:.2f} jobs/s of {SLOTS / JOB_SECONDS:.0f}"
            )


async def _measure(settings: Settings, number: int) -> tuple[float, float]:
    """How late the second caller's task starts, in seconds; and how many jobs end in a second."""
    tasks = tasks_of(build(settings))
    async with tasks.running():
        engine = tasks.engine()
        await _results(engine, [await _submitted(engine, A, 0.01)])
        records: list[TaskRecord] = []
        for start in range(0, number, TOGETHER):
            burst = (_submitted(engine, A, JOB_SECONDS) for _ in range(min(TOGETHER, number - start)))
            records += await asyncio.gather(*burst)
        await asyncio.sleep(LATER_SECONDS)
        asked = time.time()
        other = await _submitted(engine, B, JOB_SECONDS)
        ((began, _),) = await _results(engine, [other])
        times = await _results(engine, records)
    first, last = min(start for start, _ in times), max(end for _, end in times)
    return began - asked, (number + 1) / (last - first)


async def _submitted(engine: TaskEngine, caller: Caller, seconds: float) -> TaskRecord:
    arguments = {"name": "nap", "arguments": {"seconds": seconds}}
    snapshot = TaskContextSnapshot(protocol_version="2026-07-28", request_id="1")
    return await engine.submit(
        Submission(
            caller=caller,
            task_type="tool",
            component="nap",
            config=TaskConfig(),
            snapshot=replace(snapshot, params=arguments),
        )
    )


async def _results(engine: TaskEngine, records: Sequence[TaskRecord]) -> list[tuple[float, float]]:
    """When jobs have begun and their tasks ended, in seconds since the epoch."""
    found: list[tuple[float, float]] = []
    for record in records:
        view = await engine.wait(Caller(record.scope, record.issuer), record.task_id)
        if view.result is None:
            raise RuntimeError(f"a task has {view.record.status}: {view.record.status_message}")
        found.append((float(view.result["content"][0]["text"]), view.record.updated_at_ms / 1000))
    return found


if __name__ == "__main__":
    main()
