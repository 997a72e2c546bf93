"""The server that ``mcp-celery demo`` shows, `server`, and what its tools compute, which knows nothing of MCP."""
