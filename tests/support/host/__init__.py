"""Somebody's project: a Celery app of their own with settings of their own, jobs of their own, and two MCP servers."""
