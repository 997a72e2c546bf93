"""Writes ``docs/configuration.md`` from the settings model and ``TaskConfig``: ``make docs``."""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Final

from mcp_celery.config import CeleryOption, Channel, TaskConfig, celery_options_of
from mcp_celery.settings import ENV_PREFIX, Settings

TARGET = Path(__file__).with_name("configuration.md")

HEAD = """# Configuration

Every setting is an environment variable. A value that is zero, negative, contradictory or of another form is refused at
start, with an error that names the variable. Servers and workers of one namespace must agree on all of them; the
timeouts and limits at the end may differ.

This page is made from the settings model and from `TaskConfig` by `make docs`.

| Variable | Default | |
|---|---|---|
"""

TAIL = """
## URLs

`MCP_CELERY_REDIS_URL` is redis-py's form: `redis://`, `rediss://` or `unix:///path/to.sock?db=0`, with its options;
also `valkey://` and `valkeys://`, and `sentinel://HOST:PORT,HOST:PORT/MASTER/DB` for
[Redis Sentinel](redis.md#sentinel). [Redis connections](redis.md) has options, TLS, passwords that change, and the
rights of users. The broker and the result backend may be anything of Celery's, for example `amqp://…` and
`db+postgresql://…`; where they are not set they are the Redis URL. `rpc://` and `disabled://` are refused as result
backends: the first delivers each result once, to the process that sent the job, and the second keeps none.

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
    queue="gpu",
    time_limit=600,
    autoretry_for=(ConnectionError,),
    retry_backoff=True,  # after 1, 2, 4, … seconds
    show_arguments=["dataset"],
)
```

A value that Celery would reject is refused when the component is declared. `task_annotations` of the Celery app
override attributes of a job's class: `{"mcp.reports.tool.train": {"time_limit": 60}}`. A job's queue is what the
component declares, else a matching `task_routes` entry (`{"mcp.*.resource.*": {"queue": "reads"}}`), else the server's
own.

The last column says how an option reaches Celery. The class of an [exposed job](exposing-jobs.md) is declared
elsewhere, so options of such a job go with its messages.

| Option | Default | | Celery takes it as |
|---|---|---|---|
"""

CHANNELS: Final[dict[Channel, str]] = {
    "class": "attribute of the job's class",
    "header": "header of the message",
    "property": "property of the message",
    "route": "queue of the message",
}


def text() -> str:
    """The whole page."""
    rows: list[str] = []
    for name, field in Settings.model_fields.items():
        default = "none" if field.default in (None, "") else f"`{field.default}`"
        rows.append(f"| `{ENV_PREFIX}{name.upper()}` | {default} | {field.description} |")
    return HEAD + "\n".join(rows) + "\n" + TAIL + "\n".join(options()) + "\n"


def channel_of(how: CeleryOption) -> str:
    """How an option reaches Celery, in words."""
    if how.exposed is None:
        return f"{CHANNELS[how.own]}; no effect on exposed jobs"
    return (
        CHANNELS[how.own] if how.exposed == how.own else f"{CHANNELS[how.own]}; exposed jobs: {CHANNELS[how.exposed]}"
    )


def options() -> list[str]:
    """A row for each option of a component, with what the docstring of ``TaskConfig`` says of it."""
    arguments = inspect.cleandoc(TaskConfig.__doc__ or "").partition("Args:\n")[2].partition("\n\n")[0]
    described = dict(re.findall(r"^    (\w+): (.*?)(?=\n    \w+: |\Z)", arguments, re.MULTILINE | re.DOTALL))
    taken = celery_options_of(TaskConfig)
    rows: list[str] = []
    for field in fields(TaskConfig):
        meaning = " ".join(described[field.name].split()).replace("``", "`")
        default = "none" if field.default in (None, ()) else f"`{field.default!r}`"
        channel = channel_of(taken[field.name]) if field.name in taken else ""
        rows.append(f"| `{field.name}` | {default} | {meaning} | {channel} |")
    return rows


if __name__ == "__main__":
    TARGET.write_text(text())
    sys.stdout.write(f"{TARGET.name} is written\n")
