"""A Celery app with one job that does nothing, on kombu's own transport and otherwise as our worker is set up."""

from __future__ import annotations

import os

from celery import Celery

app = Celery("plain", broker=os.environ["BENCH_STORE"], backend=os.environ["BENCH_STORE"])
app.conf.update(task_acks_late=True, worker_send_task_events=True, worker_prefetch_multiplier=1)


@app.task(name="noop")
def noop() -> str:
    """Do nothing."""
    return "done"
