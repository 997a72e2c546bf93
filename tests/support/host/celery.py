"""Their app. Every setting is one that a host may have, and that our jobs would not have chosen.

``HOST_NAME`` sets their queues and keys apart, ``HOST_BROKER`` and ``HOST_BACKEND`` say where they work, ``HOST_CONF``
(JSON) changes settings, and ``HOST_SERVERS`` says what is installed.
"""

from __future__ import annotations

import json
import os
from typing import Any

from celery import Celery, signals
from kombu import Queue

from mcp_celery import install

NAME = os.environ["HOST_NAME"]
BROKER = os.environ["HOST_BROKER"]

app = Celery("host", include=["tests.support.host.jobs"])
app.conf.update(
    broker_url=BROKER,
    result_backend=os.environ["HOST_BACKEND"],
    broker_connection_retry_on_startup=True,
    # Their queues: none is made that is not named here.
    task_create_missing_queues=False,
    task_default_queue=NAME,
    task_default_exchange=f"{NAME}-exchange",
    task_default_routing_key=f"{NAME}-key",
    task_queues=[Queue(NAME), Queue(f"{NAME}-slow", routing_key="slow")],
    task_queue_max_priority=9,
    task_default_priority=3,
    task_routes={f"mcp.{NAME}.tool.routed": {"queue": f"{NAME}-slow"}},
    # Their serializers. What they publish is for others; their workers read JSON alone.
    task_serializer="pickle",
    accept_content=["application/json"],
    result_serializer="pickle",
    result_accept_content=["json", "pickle"],
    task_compression="gzip",
    result_compression="gzip",
    # Their habits.
    task_acks_late=False,
    task_acks_on_failure_or_timeout=False,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    task_track_started=True,
    task_publish_retry=False,
    task_send_sent_event=True,
    task_annotations={"*": {"rate_limit": "1000/s"}},
    result_extended=True,
    result_backend_transport_options={"global_keyprefix": f"{NAME}-results:"},
    worker_hijack_root_logger=False,
    worker_send_task_events=True,
    # Their clock is neither UTC nor the machine's.
    enable_utc=False,
    timezone="Pacific/Auckland",
)
if BROKER.startswith(("redis", "socket")):
    app.conf.broker_transport_options = {"global_keyprefix": f"{NAME}-queue:"}
app.conf.update(json.loads(os.environ.get("HOST_CONF", "{}")))
for server in filter(None, os.environ.get("HOST_SERVERS", "tests.support.host.mcp:server").split(",")):
    install(app, server)


@signals.celeryd_init.connect
def choose_queues(conf: Any = None, **_: Any) -> None:
    """As Celery's documentation has it: settings of a worker, made when it starts."""
    conf.task_queues = [*conf.task_queues, Queue(f"{NAME}-night", routing_key="night")]
