"""Names of servers, jobs and queues in Celery."""

from __future__ import annotations

import re
from typing import Final

from mcp_celery.keys import TaskType

MAX_NAMESPACE_CHARS: Final = 63


def job_name(namespace: str, task_type: TaskType, component_identifier: str) -> str:
    """Celery's name of a component's job, the name that ``task_routes`` and ``task_annotations`` match.

    >>> job_name("reports", "tool", "build_report")
    'mcp.reports.tool.build_report'
    """
    return f"mcp.{namespace}.{task_type}.{component_identifier}"


def schedule_job_name(namespace: str) -> str:
    """Celery's name of the job that beat sends at each tick of a server's schedules.

    >>> schedule_job_name("reports")
    'mcp.reports.schedule'
    """
    return f"mcp.{namespace}.schedule"


def webhook_job_name(namespace: str) -> str:
    """Celery's name of the job that delivers a server's webhooks.

    >>> webhook_job_name("reports")
    'mcp.reports.webhook'
    """
    return f"mcp.{namespace}.webhook"


def default_queue_name(namespace: str) -> str:
    """The queue of a server's jobs when neither the component nor the host's routes name one."""
    return f"mcp.{namespace}"


def slug(name: str) -> str:
    """A server's name as a namespace: at most 63 lower-case letters, digits and ``-``.

    >>> slug("Sales Reports (EU)")
    'sales-reports-eu'

    Raises:
        ValueError: Nothing of the name is left.
    """
    found = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:MAX_NAMESPACE_CHARS].rstrip("-")
    if not found:
        raise ValueError(f"the server's name {name!r} gives no namespace; set MCP_CELERY_NAMESPACE")
    return found
