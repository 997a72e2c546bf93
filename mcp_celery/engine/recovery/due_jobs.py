"""Publishes jobs that a script has made due, such as those of tasks that have got a place, before a sweep finds them.

The script cannot publish, and the process that ran it may be a child that has no connection to the broker. So it sends
a hint, to which the process that reaps listens. What a hint did not reach, the next sweep publishes.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from mcp_celery.engine.ports import TaskBus
from mcp_celery.engine.recovery.model import DUE
from mcp_celery.engine.recovery.reaper import Reaper
from mcp_celery.engine.retry import pauses
from mcp_celery.errors import StoreUnavailableError

logger = logging.getLogger(__name__)

LONGEST_PAUSE_SECONDS: Final = 15.0
"""The longest time before it listens again, while the store does not answer."""


class DueJobs:
    """Listens for jobs that are due, while this process reaps.

    Args:
        reaper: Of this process.
        bus: Brings the hints.
    """

    def __init__(self, reaper: Reaper, bus: TaskBus) -> None:
        self._reaper = reaper
        self._bus = bus

    async def run(self) -> None:
        """Publish due jobs for ever."""
        pause = pauses(LONGEST_PAUSE_SECONDS)
        while True:
            await self._reaper.elected.wait()
            try:
                async with self._bus.subscribe([DUE]) as hints:
                    while self._reaper.elected.is_set():
                        await self._reaper.publish_overdue()
                        pause = pauses(LONGEST_PAUSE_SECONDS)
                        await hints.__anext__()
            except StoreUnavailableError:
                await asyncio.sleep(next(pause))
            except Exception:
                logger.exception("could not publish jobs that are due; the next sweep tries again")
                await asyncio.sleep(next(pause))
