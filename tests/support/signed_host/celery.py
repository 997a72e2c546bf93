"""Their app, as Celery's documentation has it. ``HOST_SECURITY`` names the folder of keys and certificates."""

from __future__ import annotations

import os
from pathlib import Path

from celery import Celery

from mcp_celery import install

NAME = os.environ["HOST_NAME"]
_SECURITY = Path(os.environ["HOST_SECURITY"])

app = Celery("signed", broker=os.environ["HOST_BROKER"], backend=os.environ["HOST_BROKER"])
app.conf.update(
    security_key=str(_SECURITY / "host.key"),
    security_certificate=str(_SECURITY / "host.pem"),
    security_cert_store=str(_SECURITY / "*.pem"),
    task_serializer="auth",
    event_serializer="auth",
    result_serializer="auth",
    accept_content=["auth"],
    task_default_queue=NAME,
    # Not those of the other tests: who listens there cannot read signed events.
    event_exchange=f"{NAME}-events",
    control_exchange=NAME,
    worker_send_task_events=True,
    broker_connection_retry_on_startup=True,
)
app.setup_security()
install(app, "tests.support.signed_host.mcp:server")


@app.task(name="signed.count")
def count(words: list[str]) -> int:
    """A job of theirs."""
    return len(words)
