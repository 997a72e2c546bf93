"""Whether a server process can do its work, for the probes of load balancers and Kubernetes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from mcp_celery.common.endpoints import HEALTHZ, READYZ, Answer, Endpoints, states
from mcp_celery.common.single_flight import SingleFlight
from mcp_celery.errors import ConfigurationError, StoreUnavailableError
from mcp_celery.server.celery_tasks import tasks_of
from mcp_celery.telemetry.setup import metrics_endpoint

logger = logging.getLogger(__name__)

ASK_EVERY_SECONDS: Final = 1.0
"""Shortest time between two questions to the store, however many probes come."""
PROBE_SECONDS: Final = 0.5
"""How long a probe waits for the store's answer; then it gets the last state. Kubernetes waits for a second."""


class StoreState:
    """Whether a store answers, as last seen. Belongs to one event loop.

    Args:
        ask: Asks the store. It raises ``StoreUnavailableError`` where the store does not answer.
    """

    def __init__(self, ask: Callable[[], Awaitable[None]]) -> None:
        self._ask = ask
        self._flight = SingleFlight[None]()
        self._asked_at = float("-inf")
        self._answers = False

    async def answers(self) -> bool:
        """Whether the store answers. It is asked at most once in :data:`ASK_EVERY_SECONDS`.

        A slow answer is no outage: until it comes, the last state holds. A store that is silent raises after
        ``MCP_CELERY_STORE_TIMEOUT_MS``.
        """
        if time.monotonic() - self._asked_at >= ASK_EVERY_SECONDS:
            try:
                async with asyncio.timeout(PROBE_SECONDS):
                    await self._flight.do(self._look)
            except TimeoutError:
                pass
        return self._answers

    async def _look(self) -> None:
        try:
            await self._ask()
        except StoreUnavailableError:  # logged where it was met
            self._answers = False
        except Exception:
            logger.exception("could not check whether the store answers")
            self._answers = False
        else:
            self._answers = True
        self._asked_at = time.monotonic()


class ServerHealth:
    """Answers the probes of one server process.

    Args:
        server: The server, of any kind.
    """

    def __init__(self, server: object) -> None:
        self._metrics: Endpoints = {}
        try:
            tasks = tasks_of(server)
        except ConfigurationError:  # it runs no tasks, and needs neither store nor broker
            self._connections = None
        else:
            self._connections = tasks.connections
            self._metrics = metrics_endpoint(tasks.settings.exporters)
        self._store = None if self._connections is None else StoreState(self._connections.ask_store)
        self._is_serving = False

    @property
    def endpoints(self) -> Endpoints:
        """The endpoints of a server process."""
        return {HEALTHZ: self.alive, READYZ: self.ready, **self._metrics}

    def serves(self) -> None:
        """Note that the server's lifespan is entered."""
        self._is_serving = True

    def ends(self) -> None:
        """Note that the server is about to end. From now on it is not ready."""
        self._is_serving = False

    async def alive(self) -> Answer:
        """Answer whether the process serves: it does, or this would not answer."""
        return states({"status": "ok"}, ok=True)

    async def ready(self) -> Answer:
        """Answer whether new requests should be sent here.

        A lost broker does not make the server unready: tasks can still be read and cancelled.
        """
        if not self._is_serving:
            return states({"status": "not serving"}, ok=False)
        if self._connections is None or self._store is None:
            return states({"status": "ready"}, ok=True)
        answers = await self._store.answers()
        values = {"status": "ready" if answers else "not ready", "store": "ok" if answers else "lost"}
        if self._connections.publishes:
            values["broker"] = "lost" if self._connections.is_broker_lost() else "ok"
        return states(values, ok=answers)
