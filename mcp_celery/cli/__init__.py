"""The command line ``mcp-celery``: composition only, everything it starts is to be had without it."""

from mcp_celery.cli.main import main as main
