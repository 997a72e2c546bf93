"""What is killed, and how it comes back: as a service manager would bring it."""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

from mcp_celery import Settings
from tests.soak.server import NOTES_VARIABLE
from tests.support.deployment import is_listening
from tests.support.locks import reserve_port
from tests.support.nodes import EmbeddedStoreContainer, Pool, ProcessContainer, WorkerProcess, environment

SPEC: Final = "tests.soak.server:server"
POOLS: Final[tuple[Pool, ...]] = ("asyncio", "prefork", "threads")
BETWEEN_SECONDS: Final = (2.0, 8.0)
DOWN_SECONDS: Final = (0.0, 6.0)


class ServerProcess(ProcessContainer):
    """``mcp-celery serve`` on a port that it keeps over restarts."""

    def __init__(self, folder: Path, settings: dict[str, str], number: int) -> None:
        self.port = reserve_port()
        argv = [sys.executable, "-m", "mcp_celery", "serve", SPEC, "--port", str(self.port)]
        super().__init__(argv, name=f"server-{number}", folder=folder, env=environment(**settings))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"

    def _is_ready(self) -> bool:
        return self.status == "exited" or is_listening(self.port)


@dataclass
class Plant:
    """Everything that runs."""

    folder: Path
    store: EmbeddedStoreContainer = field(init=False)
    broker: EmbeddedStoreContainer = field(init=False)
    servers: list[ServerProcess] = field(init=False)
    workers: list[WorkerProcess] = field(init=False)
    deeds: Counter[str] = field(default_factory=Counter[str])

    def __post_init__(self) -> None:
        self.store = EmbeddedStoreContainer(self.folder / "records")
        self.broker = EmbeddedStoreContainer(self.folder / "messages")
        self.store.start()
        self.broker.start()
        self.settings = Settings.load(redis_url=self.store.url, broker_url=self.broker.url, namespace="soak")
        env = {
            "MCP_CELERY_REDIS_URL": self.store.url,
            "MCP_CELERY_BROKER_URL": self.broker.url,
            "MCP_CELERY_NAMESPACE": "soak",
            NOTES_VARIABLE: str(self.notes),
        }
        self.servers = [ServerProcess(self.folder, env, number) for number in (1, 2)]
        self.workers = [WorkerProcess(SPEC, pool, folder=self.folder, settings=env, concurrency=4) for pool in POOLS]
        for node in self.nodes:
            node.start()
            node.ready()

    @property
    def notes(self) -> Path:
        """What the tools have noted."""
        return self.folder / "notes"

    @property
    def nodes(self) -> list[ProcessContainer]:
        """Servers and workers."""
        return [*self.servers, *self.workers]

    def bring_back(self) -> None:
        """Start what has ended."""
        for node in self.nodes:
            if node.status == "exited":
                self.deeds[f"{node.name} started again"] += 1
                node.stop()
                node.start()

    def close(self) -> None:
        """End everything."""
        for node in self.nodes:
            node.stop()
        self.broker.stop()
        self.store.stop()


class Chaos:
    """Kills and stops what runs, at random.

    Args:
        plant: What runs.
        chance: Where the randomness comes from.
    """

    def __init__(self, plant: Plant, chance: random.Random) -> None:
        self._plant = plant
        self._chance = chance
        self._deeds: dict[str, Callable[[], None]] = {
            "worker killed (SIGKILL)": lambda: chance.choice(plant.workers).kill_all(),
            "worker stopped (SIGTERM)": lambda: chance.choice(plant.workers).stop(),
            "child of prefork killed": self._kill_child,
            "server killed (SIGKILL)": lambda: chance.choice(plant.servers).kill_all(),
            "server stopped (SIGTERM)": lambda: chance.choice(plant.servers).stop(),
            "store killed (SIGKILL)": lambda: self._crash(plant.store),
            "broker killed (SIGKILL)": lambda: self._crash(plant.broker),
        }
        self._weights = (5, 2, 3, 3, 1, 2, 2)

    async def run(self, stop: asyncio.Event) -> None:
        """Go on until ``stop`` is set; then everything runs again."""
        while not stop.is_set():
            await asyncio.sleep(self._chance.uniform(*BETWEEN_SECONDS))
            (deed,) = self._chance.choices(list(self._deeds), self._weights)
            self._plant.deeds[deed] += 1
            await asyncio.to_thread(self._deeds[deed])
            await asyncio.sleep(self._chance.uniform(*DOWN_SECONDS))
            await asyncio.to_thread(self._plant.bring_back)
        for node in self._plant.nodes:
            await asyncio.to_thread(node.ready)

    def _crash(self, store: EmbeddedStoreContainer) -> None:
        store.crash()
        store.start()

    def _kill_child(self) -> None:
        prefork = self._plant.workers[POOLS.index("prefork")]
        if children := prefork.children():
            with suppress(psutil.NoSuchProcess):
                psutil.Process(self._chance.choice(children)).kill()
