"""The lifespan of the user's server in a worker process: entered before the first job, left when the process ends.

Not in ``worker_process_init``: prefork kills a child that has not come up after four seconds, for ever.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from typing import Any

from mcp_celery.base_exceptions import containing, log_raised
from mcp_celery.components.source import ComponentSource

logger = logging.getLogger(__name__)


class ServerLifespan:
    """Enters a server's lifespan once for an event loop, in a task of its own: it is left where it was entered.

    Args:
        source: The server whose lifespan it is.
    """

    def __init__(self, source: ComponentSource) -> None:
        self._source = source
        self._host: asyncio.Task[None] | None = None
        self._state: asyncio.Future[Any] | None = None
        self._leave = asyncio.Event()

    async def state(self) -> Any:
        """Return the value that the lifespan yielded, entering it if needed. The next job tries a failed one again.

        Raises:
            Exception: What the lifespan raised while it was entered.
        """
        if self._state is None or _has_failed(self._state):
            self._state = asyncio.get_running_loop().create_future()
            # In a context of its own: what the lifespan starts must not go on as the first job's caller.
            self._host = asyncio.create_task(
                self._live(self._state), name="mcp-celery-lifespan", context=contextvars.Context()
            )
        return await asyncio.shield(self._state)

    async def _live(self, state: asyncio.Future[Any]) -> None:
        try:
            with containing("the server's lifespan"):
                async with self._source.lifespan() as yielded:
                    state.set_result(yielded)
                    await self._leave.wait()
        except Exception as error:  # noqa: BLE001 - it is logged
            if state.done():
                log_raised(logger, "the server's lifespan failed at its exit")
            else:
                log_raised(logger, "could not enter the server's lifespan")
                state.set_exception(error)
        finally:
            state.cancel()  # of a lifespan that was cancelled while it was entered; else it has an outcome

    async def aclose(self) -> None:
        """Leave the lifespan, if it was entered."""
        if self._host is not None:
            self._leave.set()
            await self._host


def _has_failed(state: asyncio.Future[Any]) -> bool:
    return state.cancelled() or (state.done() and state.exception() is not None)
