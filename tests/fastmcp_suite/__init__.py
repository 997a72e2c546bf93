"""FastMCP's own tests of tasks, run over this package."""
