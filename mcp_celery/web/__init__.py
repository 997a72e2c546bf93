"""Serving over HTTP: `http_app` makes what ``mcp-celery serve`` serves, for any ASGI server."""

from mcp_celery.web.app import http_app

__all__ = ["http_app"]
