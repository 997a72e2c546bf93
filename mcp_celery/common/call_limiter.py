"""A limit of concurrent calls to a service that another process provides: a store, a broker, a result backend."""

from __future__ import annotations

import asyncio

from mcp_celery.common.within import within


class NoAnswerError(TimeoutError):
    """A call that waited for its turn fails, because the service does not answer those that have theirs."""


class CallLimiter:
    """Lets a number of calls to a service run at a time; further calls wait in order.

    To wait for a turn is load, not an outage. A call that waits fails when a call that runs gets no answer, since it
    would get none either; where that call does not end even then, calls that come later wait for it no longer than
    for an answer. Belongs to one event loop.

    Args:
        most: How many calls run at a time.
        timeout_seconds: How long a call waits for others that got no answer and do not end.
    """

    def __init__(self, most: int, *, timeout_seconds: float) -> None:
        self._free = most
        self._timeout_seconds = timeout_seconds
        self._is_silent = False
        self._waiting: dict[asyncio.Future[None], bool] = {}  # in order; whether it may fail

    async def enter(self, *, may_fail: bool = True) -> None:
        """Wait for a turn. Each call that gets one must :meth:`leave`.

        Args:
            may_fail: False: wait for as long as it takes, whether or not the service answers.

        Raises:
            NoAnswerError: The service does not answer.
        """
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[turn] = may_fail
        try:
            if may_fail:
                async with within(self._timeout_seconds, progress=self._progress):
                    await turn
            else:
                await turn
        except BaseException as error:
            self._waiting.pop(turn, None)
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave()  # it got its turn at the same moment
            if type(error) is TimeoutError:
                raise NoAnswerError from None
            raise

    def leave(self) -> None:
        """Give the turn to the call that has waited longest."""
        self._is_silent = False
        while self._waiting:
            turn = next(iter(self._waiting))
            del self._waiting[turn]
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def fail_waiting(self) -> int:
        """Fail the calls that wait, because one that runs got no answer. To be called before that one leaves.

        Returns:
            How many they are.
        """
        self._is_silent = True
        failing = [turn for turn, may_fail in self._waiting.items() if may_fail and not turn.done()]
        for turn in failing:
            del self._waiting[turn]
            turn.set_exception(NoAnswerError())
        return len(failing)

    def _progress(self) -> object:
        """A value that stays the same while the service does not answer, and at no other time."""
        return None if self._is_silent else object()
