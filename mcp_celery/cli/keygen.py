"""``mcp-celery keygen``: a key for ``MCP_CELERY_ENCRYPTION_KEYS``."""

from __future__ import annotations

import secrets

import click

from mcp_celery.settings import MIN_KEY_BYTES


@click.command()
def keygen() -> None:
    """Make a key for MCP_CELERY_ENCRYPTION_KEYS, and print it.

    Servers and workers need the same keys. Several stand with commas between them, the newest first: it seals, and all
    of them open.
    """
    click.echo(secrets.token_urlsafe(MIN_KEY_BYTES))
