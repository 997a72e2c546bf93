"""A shop that has used Celery for years, and now serves its jobs' work over MCP.

==================== ===================================================================================
``settings.py``      the shop's Celery settings: broker, queues, routes. They know nothing of MCP
``celery.py``        the shop's app; its last line is what ``mcp_celery`` needs of it
``reports.py``       the shop's jobs. They know nothing of MCP either
``mcp.py``           the MCP server, on the shop's app: tools of its own, and the shop's jobs as tools
==================== ===================================================================================

With a Redis at redis://127.0.0.1:6379/0, each in the environment that ``make setup`` makes (``. .venv/bin/activate``)::

    celery -A workers.existing_app worker                       # the shop's own command: its jobs, and the server's
    mcp-celery serve workers.existing_app.mcp:server            # the MCP server: http://127.0.0.1:8000/mcp
    mcp-celery call http://127.0.0.1:8000/mcp export_orders --arg year=2026     # tools of the server's own:
    mcp-celery call http://127.0.0.1:8000/mcp compare_years --arg first=2025 --arg second=2026
    mcp-celery call http://127.0.0.1:8000/mcp build_report --arg year=2026      # the shop's jobs:
    mcp-celery call http://127.0.0.1:8000/mcp build_by_quarters --arg year=2026

Another broker: ``SHOP_BROKER_URL`` and, unless it is a Redis too, ``SHOP_RESULT_BACKEND``, which are the shop's own.
Another Redis for the tasks' records: ``MCP_CELERY_REDIS_URL``. All of them are for the worker and the server alike.
docs/existing-app.md and docs/exposing-jobs.md explain each step.
"""
