"""The server of ``tools``. A worker with :data:`HASTE` soon takes a job for lost behind which others are claimed."""

from __future__ import annotations

import os
from typing import Final

from mcp_celery.engine.recovery import lost_jobs
from tests.support.servers.tools import build

__all__ = ["HASTE", "LATER_CLAIMED_MS", "ORDER_MS", "server"]

ORDER_MS: Final = 1_000
LATER_CLAIMED_MS: Final = 2_000
HASTE: Final = {"TEST_HASTE": "1"}
"""In a worker's environment. A test that imports this module changes nothing in its own process."""

if HASTE.items() <= os.environ.items():
    lost_jobs.ORDER_MS, lost_jobs.LATER_CLAIMED_MS = ORDER_MS, LATER_CLAIMED_MS

server = build()
