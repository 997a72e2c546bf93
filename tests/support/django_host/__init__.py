"""Somebody's Django project with Celery, as Celery's documentation has it, and an MCP server."""
