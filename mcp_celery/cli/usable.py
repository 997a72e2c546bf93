"""Whether a server's store and broker can be used, before it is started."""

from __future__ import annotations

import time
from typing import Final

from mcp_celery.cli.errors import RunError
from mcp_celery.engine.retry import pauses
from mcp_celery.server.celery_tasks import unusable

LONGEST_PAUSE_SECONDS: Final = 1.0


def require_usable(server: object, wait_seconds: float | None) -> None:
    """Ask the store and the broker of a server, which refuse a wrong password or do not answer.

    Args:
        server: The server.
        wait_seconds: How long they may be unreachable; None: for ever, the server serves without them.

    Raises:
        RunError: One of them refuses user or password, or needs another setting; or one of them cannot be reached for
            the time.
    """
    deadline = time.monotonic() + (wait_seconds or 0)
    for pause in pauses(LONGEST_PAUSE_SECONDS):
        found = unusable(server)
        if found is None:
            return
        if found.is_refusal:
            raise RunError(f"{found.service} refuses the user or the password: {found.reason}")
        if found.is_misfit:
            raise RunError(f"{found.service} cannot be used: {found.reason}")
        if wait_seconds is None:
            return
        if (left := deadline - time.monotonic()) <= 0:
            raise RunError(f"{found.service} cannot be used, after --wait {wait_seconds:g} seconds: {found.reason}")
        time.sleep(min(pause, left))
