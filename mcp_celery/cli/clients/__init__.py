"""``mcp-celery client-config``: what desktop clients need to know of a server, and merging it into their files."""
