"""The shop's Celery settings, as they were before the shop used MCP."""

from __future__ import annotations

import os

from kombu import Queue

broker_url = os.environ.get("SHOP_BROKER_URL", "redis://127.0.0.1:6379/0")
result_backend = os.environ.get("SHOP_RESULT_BACKEND", broker_url)
# The Redis is shared with other projects, whose keys begin otherwise.
if broker_url.startswith("redis"):
    broker_transport_options = {"global_keyprefix": "shop:", "visibility_timeout": 7_200}
result_backend_transport_options = {"global_keyprefix": "shop:"}
result_expires = 86_400

# Every queue is known by name: a typo must not make another one.
task_create_missing_queues = False
task_default_queue = "shop"
task_queues = (Queue("shop"), Queue("shop-reports"))
task_routes = {
    "workers.existing_app.reports.*": {"queue": "shop-reports"},
    # Added later, in the file where the shop keeps its routes: a tool whose jobs belong to the reports' workers.
    "mcp.shop.tool.export_orders": {"queue": "shop-reports"},
}

task_serializer = "json"
result_serializer = "json"
accept_content = ["json"]

timezone = "Europe/Berlin"
task_time_limit = 1_800
task_acks_late = True
broker_connection_retry_on_startup = True
