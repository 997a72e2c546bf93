"""Flower's settings: ``celery -A mcp_celery flower --conf=config/flowerconfig.py``.

Flower runs this file and takes every name that is one of its options; each can be set as ``FLOWER_…`` instead, which
is the better place for a password: ``FLOWER_BASIC_AUTH=operator:secret``. Without one everyone can read the pages, and
the Revoke and Terminate buttons answer 401. ``FLOWER_UNAUTHENTICATED_API=true`` lets them work without, and lets every
web page that a browser here has open press them: not where anything matters.
"""

from __future__ import annotations

from typing import Any

from mcp_celery.keys import parse_task_key, task_key_from_job_id

# Only this machine: a proxy in front brings TLS, and decides who may come here, for `/metrics` and `/healthcheck` too,
# which ask for no password. With the password one may submit and revoke any job. With an app of your own in place of
# `-A mcp_celery`, the proxy should refuse `/api/task/result/`, which gives stored results away.
address = "127.0.0.1"

# The columns of the list: `name` names jobs of your own, `args` is where `format_task` shows whose MCP task it is
# and of what, and `result` shows a tool's failure, `<tool error>`, of which Celery's state is SUCCESS.
tasks_columns = "name,args,kwargs,state,result,received,runtime,worker,uuid"

# Jobs that are kept in memory, of all servers on the broker; then the oldest are forgotten. The default is 100,000.
max_tasks = 10_000

# Seconds after which workers that are gone leave the list and the metrics: each deployment leaves some behind.
purge_offline_workers = 3_600


def format_task(task: Any) -> Any:
    """Say in words what a job's id says in code.

    The id itself stays: Flower's links and buttons are made of it. Argument values are hidden where jobs are published
    (``TaskConfig(show_arguments=…)``), and results where they are returned; what Celery itself would show of a job of
    another app's on this broker stays as it is.

    Args:
        task: Flower's copy of a ``celery.events.state.Task``.

    Returns:
        The same, with the caller's scope and the component in place of ``args``, which our jobs have none of.
    """
    # Where a part was too long for an id, its digest stands there, behind a mark that no other part can hold.
    key = task_key_from_job_id(task.uuid.replace("~~", "digest-"))
    if key is None:
        return task
    parts = parse_task_key(key)
    scope = "anonymous" if parts.task_scope is None else parts.task_scope
    task.args = f"{scope} · {parts.task_type} {parts.component_identifier}"
    return task
