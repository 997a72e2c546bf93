"""Whose turn it is to ask a question, among all that could ask it in this process."""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary


class Turns:
    """One lock for each question."""

    def __init__(self) -> None:
        self._turns: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    def of(self, task_id: str, key: str) -> asyncio.Lock:
        """The lock that a channel holds while it asks a question.

        Args:
            task_id: The task that asks.
            key: The question's key.
        """
        lock = self._turns.get((task_id, key))
        if lock is None:
            lock = self._turns[task_id, key] = asyncio.Lock()
        return lock
