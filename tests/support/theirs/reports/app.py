"""The Celery app of somebody else's project: it knows nothing of MCP, and its workers have nothing of ours."""

import os

from celery import Celery

app = Celery("reports", broker=os.environ["REPORTS_BROKER"], backend=os.environ["REPORTS_BACKEND"])
app.conf.update(
    include=["reports.jobs"],
    task_default_queue=os.environ["REPORTS_QUEUE"],
    task_routes={"reports.jobs.routed": {"queue": os.environ["REPORTS_QUEUE"] + "-routed"}},
    task_track_started="REPORTS_UNTRACKED" not in os.environ,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
    result_expires=3600,
    task_always_eager="REPORTS_EAGER" in os.environ,
)
