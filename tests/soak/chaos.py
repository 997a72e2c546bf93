"""What is killed, emptied and deployed, and how it comes back: as a service manager would bring it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import psutil

from tests.soak.plant import POOLS, Deployable, Plant
from tests.soak.purges import delete_queue, empty_broker, purge_queue
from tests.support.nodes import ProcessContainer

BETWEEN_SECONDS: Final = (2.0, 8.0)
DOWN_SECONDS: Final = (0.0, 6.0)


class Chaos:
    """Kills, stops, empties and deploys what runs, at random.

    Args:
        plant: What runs.
        chance: Where the randomness comes from.
    """

    def __init__(self, plant: Plant, chance: random.Random) -> None:
        self._plant = plant
        self._chance = chance
        theirs = plant.their_workers
        self._deeds: dict[str, tuple[int, Callable[[], None]]] = {
            "worker killed (SIGKILL)": (5, partial(self._kill_one, plant.workers)),
            "worker stopped (SIGTERM)": (2, partial(self._stop_one, plant.workers)),
            "child of prefork killed": (3, self._kill_child),
            "server killed (SIGKILL)": (3, partial(self._kill_one, plant.servers)),
            "server stopped (SIGTERM)": (1, partial(self._stop_one, plant.servers)),
            plant.store.deed: (plant.store.weight, partial(plant.store.crash, chance)),
            "broker killed (SIGKILL)": (2, plant.crash_broker),
            **({"worker of exposed jobs killed (SIGKILL)": (1, partial(self._kill_one, theirs))} if theirs else {}),
            "worker deployed in the other version": (3, partial(self._deploy_one, plant.workers)),
            "server deployed in the other version": (2, partial(self._deploy_one, plant.servers)),
            "queue purged, as by celery purge": (2, partial(purge_queue, plant, chance)),
            "queue deleted": (2, partial(delete_queue, plant, chance)),
            "broker emptied (FLUSHALL)": (2, partial(empty_broker, plant, chance)),
        }

    async def run(self, stop: asyncio.Event) -> None:
        """Go on until ``stop`` is set; then everything runs again."""
        weights = [weight for weight, _ in self._deeds.values()]
        while not stop.is_set():
            await asyncio.sleep(self._chance.uniform(*BETWEEN_SECONDS))
            (deed,) = self._chance.choices(list(self._deeds), weights)
            self._plant.did(deed)
            await asyncio.to_thread(self._deeds[deed][1])
            await asyncio.sleep(self._chance.uniform(*DOWN_SECONDS))
            await asyncio.to_thread(self._plant.bring_back)
        for node in self._plant.nodes:
            await asyncio.to_thread(node.ready)

    def _kill_one(self, nodes: Sequence[ProcessContainer]) -> None:
        node = self._chance.choice(nodes)
        self._plant.will_end(node)
        node.kill_all()

    def _stop_one(self, nodes: Sequence[ProcessContainer]) -> None:
        node = self._chance.choice(nodes)
        self._plant.will_end(node)
        node.stop()

    def _deploy_one(self, nodes: Sequence[Deployable]) -> None:
        node = self._chance.choice(nodes)
        self._plant.will_end(node)
        node.deploy("new" if node.deployed == "old" else "old")
        node.stop()

    def _kill_child(self) -> None:
        prefork = self._plant.workers[POOLS.index("prefork")]
        if children := prefork.children():
            with suppress(psutil.NoSuchProcess):
                psutil.Process(self._chance.choice(children)).kill()
