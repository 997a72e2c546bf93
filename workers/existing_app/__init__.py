"""A shop that has used Celery for years, and now serves its jobs' work over MCP.

==================== ===================================================================================
``settings.py``      the shop's Celery settings: broker, queues, routes. They know nothing of MCP
``celery.py``        the shop's app; its last line is what ``mcp_celery`` needs of it
``reports.py``       the shop's jobs. They know nothing of MCP either
``mcp.py``           the MCP server, on the shop's app: tools of its own, and the shop's jobs as tools
==================== ===================================================================================

Three processes, each in the environment that ``make setup`` makes::

    celery -A workers.existing_app worker                       # the shop's own command: its jobs, and the server's
    mcp-celery serve workers.existing_app.mcp:server            # the MCP server: http://127.0.0.1:8000/mcp
    mcp-celery call http://127.0.0.1:8000/mcp export_orders --arg year=2026

``SHOP_BROKER_URL`` and ``SHOP_RESULT_BACKEND`` are the shop's; ``MCP_CELERY_REDIS_URL`` says where the tasks' records
are. docs/existing-app.md explains each step.
"""
