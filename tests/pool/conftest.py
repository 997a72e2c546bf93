"""Real workers of a plain Celery app on a private store. Those that no test harms are shared by a module."""

from __future__ import annotations

import socket
import sys
import uuid
from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import redis
from celery import Celery
from celery.result import AsyncResult

from mcp_celery.common.redis_translation import celery_url
from mcp_celery.embedded import EmbeddedStore
from tests.support.leaks import no_processes_left
from tests.support.nodes import ProcessContainer, environment, short_folder
from tests.support.waiting import eventually_sync

JOB_SECONDS = 120.0
if TYPE_CHECKING:
    Result = AsyncResult[Any]
else:
    Result = AsyncResult


class Worker(ProcessContainer):
    """``python -m celery -A tests.pool.app worker``, and what a test says to it.

    Args:
        url: The store's URL.
        folder: Where its jobs leave notes and look for gates.
        conf: Settings of the app.
        options: Further options of the command.
    """

    ready_prompt = " ready."

    def __init__(self, url: str, folder: Path, conf: dict[str, Any], *options: str, concurrency: int = 10) -> None:
        self.store = redis.Redis.from_url(url)
        url = celery_url(url)
        self.queue = f"pool-{uuid.uuid4().hex[:8]}"
        self.folder = folder
        lines = [f"{name}={value}" for name, value in conf.items()]
        variables = {"URL": url, "QUEUE": self.queue, "FOLDER": str(folder), "CONF": "\n".join(lines)}
        size = [] if any(option.startswith("--autoscale") for option in options) else [f"--concurrency={concurrency}"]
        flags = ["--without-mingle", "--without-gossip", f"--hostname={self.queue}@%h", "--loglevel=INFO"]
        super().__init__(
            [sys.executable, "-m", "celery", "-A", "tests.pool.app", "worker", *flags, *size, *options],
            name=self.queue,
            folder=folder,
            env=environment(
                CELERY_CUSTOM_WORKER_POOL="mcp_celery.asyncio_pool.pool:TaskPool",
                **{f"POOL_TEST_{name}": value for name, value in variables.items()},
            ),
        )
        self.app = Celery("client", broker=url, backend=url, set_as_current=False)
        # No subscription for results, which would outlive the store: they are looked for instead.
        cast(Any, self.app.backend).result_consumer.consume_from = _no_subscription
        self.app.conf.task_default_queue = self.queue

    @property
    def hostname(self) -> str:
        return f"{self.queue}@{socket.gethostname()}"

    def submit(self, task: str, *args: Any, **options: Any) -> Result:
        return self.app.send_task(f"tests.pool.app.{task}", args, **options)

    def signature(self, task: str, *args: Any) -> Any:
        return self.app.signature(f"tests.pool.app.{task}", args)

    def run(self, task: str, *args: Any, **options: Any) -> Any:
        """Send a job and wait for what it returns."""
        return value_of(self.submit(task, *args, **options))

    def notes(self, job: Result | str) -> list[str]:
        path = self.folder / "notes"
        found = path.read_text().splitlines() if path.exists() else []
        head = f"{getattr(job, 'id', job)} "
        return [line.removeprefix(head) for line in found if line.startswith(head)]

    def noted(self, job: Result | str, text: str) -> None:
        """Wait until a job has left a note."""
        eventually_sync(lambda: text in self.notes(job), what=f"the note {text!r}", seconds=JOB_SECONDS)

    def open(self, gate: str) -> None:
        (self.folder / f"gate-{gate}").touch()

    def ask(self, question: str, *args: Any) -> Any:
        """What the worker answers to `celery inspect`."""

        def answer() -> dict[str, Any]:
            inspect = self.app.control.inspect(destination=[self.hostname], timeout=2.0)
            try:
                return getattr(inspect, question)(*args) or {}
            except redis.ConnectionError:  # a test has cut all connections, this one among them
                return {}

        return eventually_sync(answer, what=f"an answer to {question}", seconds=JOB_SECONDS)[self.hostname]

    def tell(self, command: str, **arguments: Any) -> Any:
        """What the worker answers to `celery control`."""
        said = self.app.control.broadcast(
            command, arguments=arguments, destination=[self.hostname], reply=True, timeout=JOB_SECONDS, limit=1
        )
        return cast("list[dict[str, Any]]", said)[0][self.hostname]

    def ids(self, question: str) -> set[str]:
        return {request["id"] for request in self.ask(question)}

    def stop(self) -> None:
        super().stop()
        self.app.close()
        self.store.close()

    def unacknowledged(self) -> set[str]:
        """The jobs of which the broker waits to hear."""
        texts = [message.decode() for message in cast("list[bytes]", self.store.hvals("unacked"))]
        return {text.split('"id": "')[1].split('"')[0] for text in texts if self.queue in text}


def end_of(result: Result) -> tuple[str, Any]:
    """Wait for a job's end, whatever it is: its state, and what it returned or raised."""
    eventually_sync(result.ready, what=f"the end of {result.id}", seconds=JOB_SECONDS)
    return result.state, result.result


def value_of(result: Result) -> Any:
    """Wait for what a job returns."""
    state, value = end_of(result)
    assert state == "SUCCESS", value
    return value


def state_of(result: Result) -> str:
    """A job's state, of which Celery has more than its stubs know."""
    return result.state


def _no_subscription(*_: Any) -> None:
    """What the client does when it has sent a job."""


StartWorker = Callable[..., Worker]


@pytest.fixture(scope="module")
def folder() -> Generator[Path]:
    with short_folder() as folder, no_processes_left(folder, children=False):
        yield folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Generator[str]:
    with EmbeddedStore.open(folder / "store") as store:
        yield store.url


class Starter:
    """Starts workers, and stops them at the end."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self._folder = folder
        self._stack = ExitStack()
        self._workers: list[Worker] = []

    def __call__(self, *options: str, **conf: Any) -> Worker:
        folder = self._folder / f"worker-{uuid.uuid4().hex[:8]}"
        folder.mkdir()
        concurrency = conf.pop("concurrency", 10)
        worker = Worker(self._url, folder, conf, *options, concurrency=concurrency)
        self._stack.callback(worker.stop)
        worker.start()
        worker.ready()
        self._workers.append(worker)
        return worker

    def close(self) -> None:
        self._stack.close()

    def logs(self) -> dict[str, str]:
        return {worker.name: worker.logs() for worker in self._workers}


@pytest.fixture(scope="module")
def shared(url: str, folder: Path) -> Generator[Starter]:
    starter = Starter(url, folder)
    yield starter
    starter.close()


@pytest.fixture(scope="module")
def worker(shared: Starter) -> Worker:
    """A worker that no test of a module harms."""
    return shared()


@pytest.fixture
def start(url: str, folder: Path) -> Generator[Starter]:
    """Starts workers that belong to one test."""
    starter = Starter(url, folder)
    yield starter
    starter.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show with a failing test what its workers have logged."""
    report = yield
    if report.failed:
        for name in ("shared", "start"):
            starter = cast("dict[str, Any]", getattr(item, "funcargs", {})).get(name)
            if isinstance(starter, Starter):
                report.sections.extend((f"log of {worker}", text[-5_000:]) for worker, text in starter.logs().items())
    return report
