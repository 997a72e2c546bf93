"""The keys of ``MCP_CELERY_ENCRYPTION_KEYS``: how long they are, and how one is made."""

from __future__ import annotations

import secrets
from typing import Final

MIN_KEY_BYTES: Final = 32
HOW_TO_MAKE_A_KEY: Final = "`mcp-celery keygen` makes one"


def make_key() -> str:
    """A new random key, as text without commas."""
    return secrets.token_urlsafe(MIN_KEY_BYTES)
