"""Measures mcp_celery against a bare MCP server and against FastMCP 4: ``python -m bench``. It asserts nothing."""
