"""The measured servers: the same tools on a bare ``MCPServer``, on mcp_celery and on FastMCP 4."""
