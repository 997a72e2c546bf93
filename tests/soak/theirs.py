"""The Celery app of somebody else's project, whose job the server exposes. Its worker has nothing of ours."""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery, signals

from tests.soak.names import BROKER_VARIABLE, MASTER_VARIABLE, RESULTS_VARIABLE, THEIR_JOB, THEIR_QUEUE
from tests.soak.notes import note

app = Celery("theirs", broker=os.environ.get(BROKER_VARIABLE), backend=os.environ.get(RESULTS_VARIABLE))
app.conf.update(
    task_default_queue=THEIR_QUEUE,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
    result_expires=600,
)
if master := os.environ.get(MASTER_VARIABLE):
    app.conf.result_backend_transport_options = {"master_name": master}


@app.task(name=THEIR_JOB, bind=True)
def work(self: Any, number: int, seconds: float) -> int:
    """May have effects. Only the broker's own redelivery may run it again."""
    note("redelivered" if self.request.delivery_info.get("redelivered") else "begun", number)
    time.sleep(seconds)
    return number


@signals.task_success.connect
def on_stored(result: Any = None, **_: Any) -> None:
    """Celery sends this when the result backend has the result."""
    note("stored", result)
