"""The commands of operators: ``mcp-celery tasks``, ``workers`` and ``doctor``, and ``celery -A proj mcp …``."""
