"""One ``subscriptions/listen`` stream for all tasks that a session follows.

The tasks of a stream are named when it is opened. A task that comes later has it opened anew with all of them, and the
earlier stream is closed only when the new one is acknowledged. What a server cannot push is asked for instead.

A stream that breaks is opened again after a pause that doubles each time. A task of which two streams in a row said
nothing before they broke is taken for the cause: it is asked for from then on, and the others keep the stream. A server
that sends states in the order of the names exposes a single cause at once, because suspects are named last and in
reverse, so that the states of the others come first.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AsyncExitStack
from typing import Final

import anyio
import mcp_types as types
from mcp.client.subscriptions import ListenNotSupportedError, SubscriptionLost
from mcp.shared.exceptions import MCPError
from pydantic import ValidationError

from mcp_celery.client.busy import retry_after_seconds
from mcp_celery.client.retry import jittered, spread
from mcp_celery.client.session import TaskChannel, TaskStream, is_permanent
from mcp_celery.client.tracked_task import FollowedTask

MOST_PUSHED: Final = 256
"""Tasks that one stream names; what is beyond them is asked for."""
ACKNOWLEDGE_SECONDS: Final = 10.0
LEAST_RETRY_SECONDS: Final = 0.5
MOST_RETRY_SECONDS: Final = 30.0
"""The longest pause before a stream is opened again. A stream that lived for so long was sound."""
MOST_BREAKS: Final = 2
"""Streams in a row that break before they say anything of a task: so many, and it is named on none any more."""
SPACING_SECONDS: Final = 0.02
"""Between two openings, for each task that the first of them named: many tasks made at once share one, and openings
cost a server the same in each second. Meanwhile the client polls the tasks that no stream names.
"""

logger = logging.getLogger(__name__)


class TaskPush:
    """Holds the stream open while there are tasks to follow.

    Args:
        channel: The session's tasks methods.
        tasks: The tasks that are followed now by their ids, the oldest first.
        on_change: Called with the ids whose push has begun or ended.

    Attributes:
        covered: The tasks whose states the server pushes.
    """

    def __init__(
        self,
        channel: TaskChannel,
        tasks: Mapping[str, FollowedTask],
        on_change: Callable[[Iterable[str]], None],
    ) -> None:
        self.covered: frozenset[str] = frozenset()
        self._channel = channel
        self._tasks = tasks
        self._on_change = on_change
        self._named: frozenset[str] = frozenset()
        self._most = MOST_PUSHED
        self._retry_seconds = LEAST_RETRY_SECONDS
        self._opens_at = -math.inf
        self._heard: set[str] = set()
        self._broken: frozenset[str] = frozenset()
        self._is_supported = True
        self._news = anyio.Event()
        self._held = AsyncExitStack()

    def look(self) -> None:
        """Wake the stream's keeper: a task has come or gone, or the stream has ended."""
        self._news.set()

    def heard(self, task_id: str) -> None:
        """Note that the server has pushed a state of a task."""
        self._heard.add(task_id)

    async def run(self) -> None:
        """Open, renew and close the stream, until the server turns out not to push."""
        try:
            while self._is_supported:
                if self._named and not self._tasks:
                    await self._replace(AsyncExitStack(), frozenset(), frozenset())
                pause = self._opens_at - anyio.current_time()
                if pause <= 0:
                    self._judge()
                    if not self._named.issuperset(wanted := self._wanted()):
                        await self._open(wanted)
                        continue
                    pause = math.inf
                # The pause holds whatever wakes this: each task that comes, goes or is answered for does.
                with anyio.move_on_after(pause):
                    await self._news.wait()
                self._news = anyio.Event()
        finally:
            await self._held.aclose()

    def _wanted(self) -> list[str]:
        """The tasks to name, those first that broke no stream."""
        candidates = [task for task in self._tasks.values() if task.breaks < MOST_BREAKS]
        suspects = [task.task_id for task in reversed(candidates) if task.breaks]
        return ([task.task_id for task in candidates if not task.breaks] + suspects)[: self._most]

    async def _open(self, wanted: Collection[str]) -> None:
        opened = AsyncExitStack()
        heard_before, self._heard = self._heard, set()
        try:
            with anyio.fail_after(ACKNOWLEDGE_SECONDS):
                stream = await opened.enter_async_context(self._channel.listen(wanted))
        except MCPError as error:
            self._on_refusal(error, len(wanted))
        except (SubscriptionLost, TimeoutError) as error:
            self._back_off(error)
        except (ListenNotSupportedError, ValidationError) as error:
            self._give_up(error)
        else:
            await self._begin(stream, opened, frozenset(wanted))
        if self._held is not opened:
            self._heard |= heard_before  # the earlier stream goes on

    async def _begin(self, stream: TaskStream, opened: AsyncExitStack, named: frozenset[str]) -> None:
        if stream.accepted is None:
            await opened.aclose()
            self._give_up("its acknowledgement names no tasks")
            return
        await self._replace(opened, named, stream.accepted & named)
        self._channel.start_soon(self._watch, stream, opened)
        self._opens_at = anyio.current_time() + SPACING_SECONDS * max(1, len(named))

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
        if anyio.current_time() - begun >= MOST_RETRY_SECONDS:
            self._heard |= self.covered
            self._retry_seconds = LEAST_RETRY_SECONDS
        self._broken = self.covered
        await self._replace(AsyncExitStack(), frozenset(), frozenset())
        self._back_off("it ended")

    def _judge(self) -> None:
        """Find the tasks that the broken stream did not report; after the pause all its messages have been read."""
        broken, self._broken = self._broken, frozenset()
        causes: list[str] = []
        for task_id in broken:
            if task := self._tasks.get(task_id):
                task.breaks = 0 if task_id in self._heard else task.breaks + 1
                if task.breaks == MOST_BREAKS:
                    causes.append(task_id)
        if causes:
            logger.info("Streams broke before they reported these tasks, so the client polls them: %s", causes)
            if broken & self._heard:  # the others are sound
                self._retry_seconds = LEAST_RETRY_SECONDS

    def _back_off(self, why: object, at_least_seconds: float = 0.0) -> None:
        pause = max(jittered(self._retry_seconds), spread(at_least_seconds))
        logger.debug("The stream of tasks is opened again in %.2g s: %s", pause, why)
        self._opens_at = anyio.current_time() + pause
        self._retry_seconds = min(2 * self._retry_seconds, MOST_RETRY_SECONDS)
        self.look()

    def _on_refusal(self, error: MCPError, named: int) -> None:
        if error.code == types.INVALID_PARAMS and named > 1:
            self._most = named // 2  # the server takes fewer at a time
        elif is_permanent(error):
            self._give_up(error)
        else:
            self._back_off(error, retry_after_seconds(error.error) or 0.0)

    def _give_up(self, why: object) -> None:
        logger.info("The server does not push tasks, so the client polls them: %s", why)
        self._is_supported = False
