"""One ``subscriptions/listen`` stream for all tasks that a session follows.

The tasks of a stream are named when it is opened. A task that comes later has it opened anew with all of them, and the
earlier stream is closed only when the new one is acknowledged. What a server cannot push is asked for instead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from itertools import islice
from typing import Final

import anyio
import mcp_types as types
from mcp.client.subscriptions import ListenNotSupportedError, SubscriptionLost
from mcp.shared.exceptions import MCPError
from pydantic import ValidationError

from mcp_celery.client.channel import TaskChannel, TaskStream, is_permanent

MOST_PUSHED: Final = 256
"""Tasks that one stream names; what is beyond them is asked for."""
ACKNOWLEDGE_SECONDS: Final = 10.0
LEAST_RETRY_SECONDS: Final = 0.5
MOST_RETRY_SECONDS: Final = 30.0
SPACING_SECONDS: Final = 0.02
"""Between two openings, so that many tasks made at once share one."""

logger = logging.getLogger(__name__)


class TaskPush:
    """Holds the stream open while there are tasks to follow.

    Args:
        channel: The session's tasks methods.
        live: The ids of the tasks that are followed now, the oldest first.
        on_change: Called with the ids whose push has begun or ended.

    Attributes:
        covered: The tasks of which the server tells.
    """

    def __init__(
        self, channel: TaskChannel, live: Callable[[], Iterable[str]], on_change: Callable[[Iterable[str]], None]
    ) -> None:
        self.covered: frozenset[str] = frozenset()
        self._channel = channel
        self._live = live
        self._on_change = on_change
        self._named: frozenset[str] = frozenset()
        self._most = MOST_PUSHED
        self._retry_seconds = LEAST_RETRY_SECONDS
        self._is_supported = True
        self._news = anyio.Event()
        self._held = AsyncExitStack()

    def look(self) -> None:
        """Say that a task has come or gone, or that the stream has ended."""
        self._news.set()

    async def run(self) -> None:
        """Open, renew and close the stream, until the server turns out not to push."""
        try:
            while self._is_supported:
                await self._news.wait()
                self._news = anyio.Event()
                await self._renew()
        finally:
            await self._held.aclose()

    async def _renew(self) -> None:
        wanted = frozenset(islice(self._live(), self._most))
        if self._named and not wanted:
            await self._replace(AsyncExitStack(), wanted, frozenset())
        if wanted <= self._named:
            return
        opened = AsyncExitStack()
        try:
            with anyio.fail_after(ACKNOWLEDGE_SECONDS):
                stream = await opened.enter_async_context(self._channel.listen(wanted))
        except MCPError as error:
            await self._on_refusal(error, len(wanted))
        except (SubscriptionLost, TimeoutError) as error:
            await self._pause(error)
        except (ListenNotSupportedError, ValidationError) as error:
            self._give_up(error)
        else:
            if stream.accepted is None:
                await opened.aclose()
                self._give_up("its acknowledgement names no tasks")
                return
            await self._replace(opened, wanted, stream.accepted & wanted)
            self._channel.start_soon(self._watch, stream, opened)
            await anyio.sleep(SPACING_SECONDS)

    async def _replace(self, stream: AsyncExitStack, named: frozenset[str], covered: frozenset[str]) -> None:
        earlier, self._held, self._named = self._held, stream, named
        changed, self.covered = self.covered ^ covered, covered
        self._on_change(changed)
        await earlier.aclose()

    async def _watch(self, stream: TaskStream, opened: AsyncExitStack) -> None:
        begun = anyio.current_time()
        try:
            await stream.end()
        except SubscriptionLost as error:
            logger.debug("The stream of tasks broke: %s", error.__cause__ or error)
        if opened is not self._held:
            return  # it was replaced
        await self._replace(AsyncExitStack(), frozenset(), frozenset())
        if anyio.current_time() - begun > MOST_RETRY_SECONDS:
            self._retry_seconds = LEAST_RETRY_SECONDS
        await self._pause("it ended")

    async def _pause(self, why: object) -> None:
        logger.debug("The stream of tasks is opened again in %g s: %s", self._retry_seconds, why)
        await anyio.sleep(self._retry_seconds)
        self._retry_seconds = min(2 * self._retry_seconds, MOST_RETRY_SECONDS)
        self.look()

    async def _on_refusal(self, error: MCPError, named: int) -> None:
        if error.code == types.INVALID_PARAMS and named > 1:
            self._most = named // 2  # the server takes fewer at a time
            self.look()
        elif is_permanent(error):
            self._give_up(error)
        else:
            await self._pause(error)

    def _give_up(self, why: object) -> None:
        logger.info("The server does not push tasks, which are asked for instead: %s", why)
        self._is_supported = False
