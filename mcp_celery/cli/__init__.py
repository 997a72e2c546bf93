"""The command line ``mcp-celery`` (``main.py``): composition only, everything it starts is to be had without it.

This package imports nothing: every ``celery`` call loads ``cli/operate/commands.py``, which needs click alone.
"""
