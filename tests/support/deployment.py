"""A store, workers and servers as people run them: every one a process of its own."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import redis
from mcp.client.stdio import StdioServerParameters, stdio_client

from mcp_celery.cli.options import POOLS
from mcp_celery.engine.recovery.model import DUE
from tests.support.nodes import COVERAGE_IS_MEASURED, STOP_SECONDS
from tests.support.programs import ROOT, Running, forked_command, start

MODULE = "tests.acceptance.fixture_server"
DEADLINE_SECONDS = 180.0


def wait_until(happened: object, what: str) -> None:
    """Wait for a condition; the deadline only bounds a failure."""
    assert callable(happened)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not happened():
        if time.monotonic() > deadline:
            raise AssertionError(f"never happened: {what}")
        time.sleep(0.02)


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def answering_url(log: Path, child: Running) -> str:
    """Wait until a server of ours answers, at the port that it has chosen (``--port 0``).

    Returns:
        Its URL.
    """

    def found() -> re.Match[str] | None:
        return re.search(r"(?i)answers at (http://\S+)", log.read_text())

    wait_until(lambda: found() or child.poll() is not None, "the server says where it answers")
    url = found()
    assert url, log.read_text()
    return url[1]


@contextmanager
def process(
    argv: list[str], env: dict[str, str], log: Path, *, quiet: bool = False, folder: Path = ROOT
) -> Generator[Running]:
    """A process in a group of its own; ended with everything it started, its log shown when the test fails."""
    with log.open("ab") as out:
        started = start(argv, env=env, folder=folder, output=out.fileno())
    try:
        yield started
    finally:
        if COVERAGE_IS_MEASURED:
            started.terminate()
            with suppress(subprocess.TimeoutExpired):
                started.wait(STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()
        if not quiet:
            print(f"--- {log.name}\n{log.read_text(errors='replace')[-4000:]}")  # noqa: T201 - pytest shows it on failure


def pipelined(store: Any, commands: Iterable[tuple[str, str]]) -> list[Any]:
    """Send commands at once: a store that many tests share has thousands of keys."""
    pipeline = store.pipeline(transaction=False)
    for command, key in commands:
        getattr(pipeline, command)(key)
    return pipeline.execute(raise_on_error=False)


@dataclass
class Deployment:
    """One store, one worker and as many servers as a test wants."""

    store_url: str
    namespace: str
    folder: Path
    stack: ExitStack
    quiet: bool = False
    spec: str = f"{MODULE}:server"
    settings: Mapping[str, str] = field(default_factory=dict[str, str])
    app: str = "mcp_celery"
    servers: int = 0

    @property
    def redis(self) -> redis.Redis:
        return redis.Redis.from_url(self.store_url, decode_responses=True)

    def env(self, **settings: str) -> dict[str, str]:
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("MCP_CELERY_")},
            "PYTHONUNBUFFERED": "1",
            "MCP_CELERY_REDIS_URL": self.store_url,
            "MCP_CELERY_NAMESPACE": self.namespace,
            "MCP_CELERY_SNAPSHOT_HEADERS": "x-trace, accept-language",
            "MCP_CELERY_POLL_INTERVAL_MS": "100",
            **self.settings,
            **settings,
        }

    def serve(self, attribute: str | None = None, **settings: str) -> str:
        """Start a server.

        Returns:
            Its URL.
        """
        spec = self.spec if attribute is None else f"{self.spec.partition(':')[0]}:{attribute}"
        self.servers += 1
        argv = [sys.executable, "-m", "mcp_celery", "serve", spec, "--port", "0"]
        log = self.folder / f"server-{self.servers}.log"
        child = self.stack.enter_context(process(argv, self.env(**settings), log, quiet=self.quiet))
        return answering_url(log, child)

    def stdio(self, **settings: str) -> AbstractAsyncContextManager[Any]:
        """A transport of the SDK's client to a server of its own, which it starts and ends."""
        argv = [*forked_command("mcp_celery"), "serve", self.spec, "--transport", "stdio"]
        env = self.env(**settings)
        return stdio_client(StdioServerParameters(command=argv[0], args=argv[1:], env=env, cwd=str(ROOT)))

    def logs(self) -> dict[str, str]:
        """What each process has logged so far, by the name of its log."""
        return {log.name: log.read_text(errors="replace") for log in sorted(self.folder.glob("*.log"))}

    def our_keys(self) -> set[str]:
        """Our keys in the store."""
        return set(cast("list[str]", self.redis.keys("mcp_celery:*")))

    def channels(self) -> list[str]:
        """The channels of tasks that somebody is subscribed to. The process that reaps listens to that of no task."""
        found = cast("list[str]", self.redis.pubsub_channels("mcp_celery:*:events"))
        return [name for name in found if not name.endswith(f":{DUE.task_id}:events")]

    def contents(self) -> list[str]:
        """Everything that is in the store, key by key, as text."""
        store: Any = self.redis
        keys = store.keys("*")
        kinds = pipelined(store, [("type", key) for key in keys])
        read = {"string": "get", "hash": "hgetall"}
        found = pipelined(store, [(read.get(kind, "dump"), key) for kind, key in zip(kinds, keys, strict=True)])
        return [str(one) for one in found]

    @contextmanager
    def worker(
        self, pool: str, concurrency: int = 2, level: str = "INFO", flags: Sequence[str] = ()
    ) -> Generator[None]:
        """A worker, for as long as the context lasts."""
        argv = [sys.executable, "-m", "celery", "-A", self.app, "worker", "-l", level, "--without-mingle"]
        argv += ["-c", str(concurrency), "-n", f"{self.namespace}-{pool}@%h"]
        argv += [*POOLS[pool], *flags]
        log = self.folder / f"worker-{pool}.log"
        begun = log.stat().st_size if log.exists() else 0
        env = self.env(MCP_CELERY_SERVER=self.spec)
        with process(argv, env, log, quiet=self.quiet) as child:
            wait_until(
                lambda: b" ready." in log.read_bytes()[begun:] or child.poll() is not None,
                f"the {pool} worker is ready",
            )
            assert child.poll() is None, log.read_text()
            yield


@contextmanager
def deployed(
    store_url: str,
    namespace: str,
    *,
    quiet: bool = False,
    spec: str = f"{MODULE}:server",
    settings: Mapping[str, str] | None = None,
    app: str = "mcp_celery",
) -> Generator[Deployment]:
    with tempfile.TemporaryDirectory(prefix="mcp-acc-") as folder, ExitStack() as stack:
        deployment = Deployment(store_url, namespace, Path(folder), stack, quiet, spec, settings or {}, app)
        _open.append(deployment)
        try:
            yield deployment
        except BaseException:
            _left.update(_ends(deployment))
            raise
        finally:
            _open.remove(deployment)


_open: list[Deployment] = []
_left: dict[str, str] = {}
"""Ends of the logs of a deployment that a failing test has closed."""
LOG_END: Final = 4_000
"""Characters of each log that a failing test shows."""


def _ends(deployment: Deployment) -> dict[str, str]:
    return {f"{deployment.namespace}: {name}": text[-LOG_END:] for name, text in deployment.logs().items()}


def ends_of_logs() -> dict[str, str]:
    """What a failing test shows: the ends of the logs of all deployments that are open, or that it has closed."""
    return {name: end for deployment in _open for name, end in _ends(deployment).items()} | _left


def forget_ends_of_logs() -> None:
    """The test is over whose deployments were closed."""
    _left.clear()
