"""Metrics and traces of servers and workers, through OpenTelemetry's API. They observe, and decide nothing.

The API does nothing where the process has no OpenTelemetry SDK. ``MCP_CELERY_TELEMETRY`` configures one
(:mod:`mcp_celery.telemetry.setup`), which needs the extra ``telemetry``; a program that configures its own gets the
same metrics and spans. ``docs/metrics.md`` lists the metrics, ``docs/monitoring.md`` the spans.

- ``instruments.py``: every metric, with its name, unit and labels.
- ``tasks.py``: the observer of task transitions, and what a request that meets a limit counts.
- ``requests.py``: the middleware that measures requests.
- ``traces.py``: the spans of a task, and how a trace reaches its jobs and notifications.
- ``loops.py``: how late an event loop is.
- ``children.py``: what the child processes of a prefork worker measure reaches their parent.
- ``setup.py``, ``sdk.py``: which exporters there are.
"""
