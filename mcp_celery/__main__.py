"""``python -m mcp_celery`` is ``mcp-celery``."""

from mcp_celery.cli.main import main

if __name__ == "__main__":
    main()
