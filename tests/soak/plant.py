"""What runs: a store, a broker, servers and workers of two versions, and a worker of somebody else's app."""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mcp_celery import Settings
from mcp_celery.common.redis_translation import celery_url
from tests.soak import names
from tests.soak.notes import NOTES_VARIABLE
from tests.soak.server import EXPOSES_VARIABLE, VERSION_VARIABLE, Version
from tests.soak.stores import NAMESPACE, STORES, SoakStore, StoreKind
from tests.support.deployment import is_listening
from tests.support.locks import reserve_port
from tests.support.nodes import ALONE, EmbeddedStoreContainer, Pool, ProcessContainer, WorkerProcess, environment

SPEC: Final = "tests.soak.server:server"
POOLS: Final[tuple[Pool, ...]] = ("asyncio", "prefork", "threads")
VERSIONS: Final[tuple[Version, ...]] = ("old", "new")
SURELY_READY_SECONDS: Final = 20.0
"""A worker that was started this long ago is ready."""


@dataclass
class Span:
    """A time in which a worker of a version advertises its components for sure.

    Attributes:
        version: The version.
        since: When the worker is ready for sure, in seconds since the epoch.
        until: When it was ended, None while it runs.
    """

    version: Version
    since: float
    until: float | None = None

    def covers(self, since: float, until: float) -> bool:
        """Whether it lasts from one time to another."""
        return self.since <= since and (self.until is None or until <= self.until)


class Deployable(ProcessContainer):
    """A process whose version is chosen when it is started.

    Attributes:
        deployed: The version.
        spans: When it ran.
    """

    deployed: Version
    spans: list[Span]

    def deploy(self, version: Version) -> None:
        """Have that version from the next start on."""
        self.deployed = version
        self._env[VERSION_VARIABLE] = version

    def start(self) -> None:
        super().start()
        self.spans.append(Span(self.deployed, time.time() + SURELY_READY_SECONDS))


class ServerProcess(Deployable):
    """``mcp-celery serve`` on a port that it keeps over restarts."""

    def __init__(self, folder: Path, settings: dict[str, str], number: int) -> None:
        self.port = reserve_port()
        argv = [sys.executable, "-m", "mcp_celery", "serve", SPEC, "--port", str(self.port)]
        super().__init__(argv, name=f"server-{number}", folder=folder, env=environment(**settings))
        self.spans = []
        self.deploy(VERSIONS[number % 2])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"

    def _is_ready(self) -> bool:
        return self.status == "exited" or is_listening(self.port)


class OwnWorker(Deployable, WorkerProcess):
    """A worker of the server."""

    def __init__(self, pool: Pool, folder: Path, settings: dict[str, str], version: Version) -> None:
        super().__init__(SPEC, pool, folder=folder, settings=settings, concurrency=4)
        self.spans = []
        self.deploy(version)


class TheirWorker(ProcessContainer):
    """A worker of the app whose job is exposed."""

    ready_prompt = " ready."

    def __init__(self, folder: Path, variables: dict[str, str]) -> None:
        argv = [sys.executable, "-m", "celery", "-A", "tests.soak.theirs:app", "worker", "-P", "threads", "-c", "4"]
        argv += [*ALONE, "-Q", names.THEIR_QUEUE, "-n", "theirs@%h", "-l", "INFO"]
        super().__init__(argv, name="worker-theirs", folder=folder, env=environment(**variables))


@dataclass
class Plant:
    """Everything that runs."""

    folder: Path
    kind: StoreKind = "single"
    store: SoakStore = field(init=False)
    broker: EmbeddedStoreContainer = field(init=False)
    servers: list[ServerProcess] = field(init=False)
    workers: list[OwnWorker] = field(init=False)
    their_workers: list[TheirWorker] = field(init=False)
    """One, or none where the exposed app could not keep its results."""
    deeds: Counter[str] = field(default_factory=Counter[str])
    purged: dict[str, float] = field(default_factory=dict[str, float])
    """Celery ids of the jobs that the broker was made to lose, and when."""
    ended: set[str] = field(default_factory=set[str])
    """Names of the processes that were ended on purpose."""
    unasked: list[str] = field(default_factory=list[str])
    """Which processes ended although they were left alone."""

    def __post_init__(self) -> None:
        self.broker = EmbeddedStoreContainer(self.folder / "messages")
        self.broker.start()
        self.store = STORES[self.kind](self.folder)
        self.settings = Settings.load(redis_url=self.store.url, broker_url=self.broker.url, namespace=NAMESPACE)
        self.env = {
            "MCP_CELERY_REDIS_URL": self.store.url,
            "MCP_CELERY_BROKER_URL": self.broker.url,
            "MCP_CELERY_NAMESPACE": NAMESPACE,
            NOTES_VARIABLE: str(self.notes),
            EXPOSES_VARIABLE: "yes" if self.store.keeps_results_of_others else "",
        }
        self.servers = [ServerProcess(self.folder, self.env, number) for number in (1, 2)]
        self.workers = [
            OwnWorker(pool, self.folder, self.env, VERSIONS[number % 2]) for number, pool in enumerate(POOLS)
        ]
        self.their_workers = [TheirWorker(self.folder, self._their_env())] if self.store.keeps_results_of_others else []
        try:
            for node in self.nodes:
                node.start()
            for node in self.nodes:
                node.ready()
        except BaseException:
            self.close()
            raise

    def _their_env(self) -> dict[str, str]:
        results = self.settings.celery_results
        return {
            names.BROKER_VARIABLE: celery_url(self.broker.url),
            names.RESULTS_VARIABLE: celery_url(self.store.url),
            names.MASTER_VARIABLE: results.get("result_backend_transport_options", {}).get("master_name", ""),
            NOTES_VARIABLE: str(self.notes),
        }

    @property
    def notes(self) -> Path:
        """What the tools have noted."""
        return self.folder / "notes"

    @property
    def nodes(self) -> list[ProcessContainer]:
        """Servers and workers."""
        return [*self.servers, *self.workers, *self.their_workers]

    @property
    def spans(self) -> list[Span]:
        """When workers of which version ran."""
        return [span for worker in self.workers for span in worker.spans]

    def did(self, deed: str) -> None:
        """Count a deed, and log it."""
        self.deeds[deed] += 1
        with (self.folder / "deeds.log").open("a") as log:
            log.write(f"{time.strftime('%H:%M:%S')} {deed}\n")

    def will_end(self, node: ProcessContainer) -> None:
        """Note that a process is ended on purpose, from now on."""
        self.ended.add(node.name)
        if isinstance(node, Deployable):
            node.spans[-1].until = time.time()

    def crash_broker(self) -> None:
        """Kill the broker. Workers go on advertising their components."""
        self.broker.crash()
        self.broker.start()

    def bring_back(self) -> None:
        """Start what has ended."""
        for node in self.nodes:
            if node.status == "exited":
                if node.name not in self.ended:
                    self.unasked.append(f"{node.name} ended by itself, with {node.process.returncode}")
                self.did(f"{node.name} started again")
                node.stop()
                node.start()
                self.ended.discard(node.name)

    def close(self) -> None:
        """End everything."""
        for node in self.nodes:
            node.stop()
        self.broker.stop()
        self.store.stop()
