"""Settings of a deployment, to be copied and changed: nothing in `mcp_celery` imports them."""
