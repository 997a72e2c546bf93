"""Celery's settings for a deployment: ``CELERY_CONFIG_MODULE=config.celeryconfig`` for the server, workers and Flower.

What is said here wins over what ``mcp_celery`` sets by itself, which the settings below leave alone:

- broker, result backend, default queue and the expiry of results follow ``MCP_CELERY_*``;
- messages and results are JSON;
- a worker takes no more jobs than it can run (``worker_prefetch_multiplier = 1``), because jobs are long;
- jobs run on the asyncio pool (``worker_pool``), unless the command line names another;
- events are sent, so that Flower sees every job.

Leave ``worker_enable_remote_control`` on: it lets an operator end a running job, and ``tasks/cancel`` end a process of
the prefork pool. Without it jobs are cancelled through Redis.
"""

from __future__ import annotations

import json
import logging.config
from pathlib import Path
from typing import Any

from celery.signals import setup_logging

# Seconds. Ends what hangs; a tool that needs longer says so: TaskConfig(time_limit=…).
task_time_limit = 3_600

# Seconds until Redis hands an unacknowledged job to another worker. Jobs are acknowledged when they end,
# so it has to be longer than any of them takes: the second worker would only find that the job was begun already.
broker_transport_options = {"visibility_timeout": 2 * task_time_limit}

# A lost connection is tried again for ever. Celery's default gives up after a hundred times, and the worker ends.
broker_connection_max_retries = None

# Seconds after which an idle connection to the result backend is tried before it is used: firewalls drop them silently.
# (`redis_socket_keepalive` would do the same and more, but Celery passes it on to Unix sockets too, which refuse it.)
redis_backend_health_check_interval = 30

# Jobs that a worker runs at a time; and the most that the asyncio pool runs while they only wait. They share a process:
# a hundred that wait cost little, and a tool that computes slows the others down. Such tools do better in processes:
# `-P processes --concurrency CORES`. Tools that share a pool of connections need a fixed number: take out the second
# line.
worker_concurrency = 100
worker_asyncio_grow_to = 1_000

# With `-P processes` only: seconds that a process may take to come up. Four, the default, are short on a busy machine.
# There, --max-tasks-per-child and --max-memory-per-child give back what tools leak; the asyncio pool warns of both.
worker_proc_alive_timeout = 30.0

# Jobs that still wait in the queue are seen in Flower too, for one more message a job.
task_send_sent_event = True


def configure_logging(**_: Any) -> None:
    """Log as the server does, which says more than Celery's own ``--loglevel`` and ``--logfile``."""
    logging.config.dictConfig(json.loads(Path(__file__).with_name("logging.json").read_text(encoding="utf-8")))


# Remove this line, and `--loglevel` and `--logfile` count again.
setup_logging.connect(configure_logging, weak=False, dispatch_uid="config.celeryconfig")
