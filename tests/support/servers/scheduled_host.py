"""The Celery app of a host whose beat runs a schedule of the server ``scheduled``, which it does not import."""

from __future__ import annotations

from typing import Any

from celery import Celery

from mcp_celery import Settings

app: Any = Celery("host", set_as_current=False)
app.conf.update(
    **Settings.load().celery_broker,
    beat_schedule={
        "yearly report": {
            "task": "mcp.scheduled.schedule",
            "schedule": 1,
            "args": ["yearly"],
            "options": {"queue": "mcp.scheduled"},
        }
    },
)
