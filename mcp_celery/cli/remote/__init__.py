"""Commands that talk to an MCP server: `call` and `task`."""
