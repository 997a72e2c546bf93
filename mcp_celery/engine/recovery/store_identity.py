"""A process knows the mark of the store that it uses (``engine/store_mark.py``)."""

from __future__ import annotations

import asyncio

from mcp_celery.engine.ports import RecoveryStore
from mcp_celery.engine.record import now_ms
from mcp_celery.engine.store_mark import StoreMark
from mcp_celery.errors import StoreUnavailableError
from mcp_celery.logs import get_logger

logger = get_logger(__name__)


class StoreIdentity:
    """The mark of the store that this process uses.

    Args:
        store: Keeps it.
        makes: Whether this process is a server, which gives a mark to a store that has none. A worker does not: a store
            that only workers use is not the one where servers keep their tasks.
        pause_seconds: Time between two looks. A look keeps the mark alive, and finds that the store was emptied.

    Attributes:
        mark: The mark that the last look found.
    """

    def __init__(self, store: RecoveryStore, *, makes: bool, pause_seconds: float) -> None:
        self._store = store
        self._makes = makes
        self._pause_seconds = pause_seconds
        self.mark: StoreMark | None = None

    def for_message(self) -> str | None:
        """The mark of the store in messages that are published now; None until a mark is known."""
        return None if self.mark is None else str(StoreMark(self.mark.mark_id, now_ms()))

    async def run(self) -> None:
        """Look for ever."""
        while True:
            try:
                self.mark = await self._store.mark(StoreMark.new() if self._makes else None)
            except StoreUnavailableError:
                pass  # logged where it was met
            except Exception:
                logger.exception("could not read the store's mark")  # and the next look may read it
            await asyncio.sleep(self._pause_seconds)
