"""What the server, the app whose job it exposes, and the audit agree on. Imports nothing."""

from __future__ import annotations

from typing import Final

THEIR_QUEUE: Final = "theirs"
THEIR_JOB: Final = "theirs.work"
THEIR_TTL_SECONDS: Final = 60.0
"""How long tasks of the exposed job live. One that is lost with its broker or its worker has no other end."""
BROKER_VARIABLE: Final = "THEIRS_BROKER"
RESULTS_VARIABLE: Final = "THEIRS_RESULTS"
MASTER_VARIABLE: Final = "THEIRS_MASTER"
"""The name of the master that keeps the results, where Sentinels watch it."""
