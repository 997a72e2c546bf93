"""Celery's settings of :mod:`tests.support.servers.queued`, for ``CELERY_CONFIG_MODULE``."""

import json
import os

from kombu import Queue

_settings = json.loads(os.environ.get("QUEUED_SETTINGS", "{}"))
if "task_queues" in _settings:
    _settings["task_queues"] = [Queue.from_dict(name, **one) for name, one in _settings["task_queues"].items()]
globals().update(_settings)
