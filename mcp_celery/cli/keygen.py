"""``mcp-celery keygen``: a key for ``MCP_CELERY_ENCRYPTION_KEYS``."""

from __future__ import annotations

import click

from mcp_celery.common.encryption_keys import make_key


def keygen() -> None:
    """Print a new key."""
    click.echo(make_key())
