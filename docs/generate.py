"""Writes ``docs/configuration.md`` from the settings model: ``python docs/generate.py`` (``make docs``)."""

from __future__ import annotations

import sys
from pathlib import Path

from mcp_celery.settings import ENV_PREFIX, Settings

TARGET = Path(__file__).with_name("configuration.md")

HEAD = """# Configuration

Every setting is an environment variable. A value that is zero, negative, contradictory or of another form is refused at
start, with an error that names the variable. Servers and workers of one namespace must agree on all of them; the
timeouts and limits at the end may differ.

This page is made from the settings model by `make docs`.

| Variable | Default | |
|---|---|---|
"""

TAIL = """
## URLs

`MCP_CELERY_REDIS_URL` is redis-py's form: `redis://`, `rediss://` or `unix:///path/to.sock?db=0`. The broker and the
result backend may be anything of Celery's, for example `amqp://…` and `db+postgresql://…`; where they are not set
they are the Redis URL. `rpc://` and `disabled://` are refused as result backends: the first delivers each result once,
to the process that sent the job, and the second keeps none.

## The command line's own

`mcp-celery call` and `mcp-celery task` read one variable, which no server and no worker reads:
`MCP_CELERY_CLIENT_HEADERS` holds HTTP headers of each request, as `NAME: VALUE`, one a line. They are sent to whatever
URL is typed. A `--header` of the same name wins.

## Time to live

A task is kept for the time that was granted when it was created: what its component declares
(`TaskConfig(ttl=…)`, milliseconds or a `timedelta`), else `MCP_CELERY_DEFAULT_TTL_MS`; never above
`MCP_CELERY_MAX_TTL_MS`, and never above the `result_expires` of the Celery app, since no task may outlive its stored
result. The granted value is the reported one, everywhere.

## What a component declares

`@server.tool(task=…)`, `@server.prompt(task=…)` and `@server.resource(uri, task=…)` take `True`, `False` or a
`TaskConfig`. Celery's options carry Celery's names and units.

```python
from datetime import timedelta

from mcp_celery import TaskConfig

TaskConfig(
    mode="required",  # "forbidden", "optional" (task=True) or "required"
    ttl=timedelta(hours=2),  # or milliseconds
    poll_interval=2_000,  # for clients without push; milliseconds or a timedelta
    queue="gpu",  # else task_routes, else mcp.{namespace}
    priority=5,
    time_limit=600,  # seconds; the job is ended
    soft_time_limit=540,  # seconds; SoftTimeLimitExceeded is raised in the job
    rate_limit="10/m",  # how often a worker starts it
    autoretry_for=(ConnectionError,),  # upon these it runs again …
    max_retries=3,  # … so often; None: for ever
    retry_backoff=True,  # … after 1, 2, 4, … seconds
    retry_backoff_max=600,  # … but no longer than this
    retry_jitter=True,  # … at a random time up to it
    acks_late=False,  # True: harmless to run twice for one call
    foreground="worker",  # where a tool runs for clients that follow no task; "server": not as a job
    expires=3600,  # seconds; a job that nobody began by then fails
    ask="during",  # when returned questions are asked: "before" there is a task, or "during" it
    input_timeout=600,  # seconds that an awaited question waits for its answer; 3600 by default
    show_arguments=["dataset"],  # values that Flower and events may show; all others are hidden
)
```

A value that Celery would reject is refused when the component is declared. Limits are attributes of the job's class, so
`task_annotations` of the Celery app override them: `{"mcp.reports.tool.train": {"time_limit": 60}}`. A job's queue is
what the component declares, else a matching `task_routes` entry (`{"mcp.*.resource.*": {"queue": "reads"}}`), else
the server's own.
"""


def text() -> str:
    """The whole page."""
    rows: list[str] = []
    for name, field in Settings.model_fields.items():
        default = "none" if field.default in (None, "") else f"`{field.default}`"
        rows.append(f"| `{ENV_PREFIX}{name.upper()}` | {default} | {field.description} |")
    return HEAD + "\n".join(rows) + "\n" + TAIL


if __name__ == "__main__":
    TARGET.write_text(text())
    sys.stdout.write(f"{TARGET.name} is written\n")
