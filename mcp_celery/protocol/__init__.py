"""The wire: which requests become tasks, how tasks are encoded, and how changes are pushed.

The engine stores how a job ended and knows no revision. Each request has one ``Revision`` object, which
``revisions.py`` chooses by the request's version. It decides whether the request asks for a task, encodes tasks and
results, serves ``tasks/get`` and ``tasks/cancel``, and decides how questions reach the client. A worker uses the same
object, chosen by the version in the snapshot. Nothing else compares versions.

- ``v2026_07_28/``: the extension ``io.modelcontextprotocol/tasks`` (SEP-2663).
- ``v2025_11_25/``: tasks of the core protocol (SEP-1686). The SDK knows none at this revision and would strip a
  ``CreateTaskResult``. So the middleware sends a validated request with ``task`` to a private method of the extension,
  and adds ``capabilities.tasks`` and ``execution.taskSupport`` to results.
- ``plain_clients/``: calls of clients without tasks. Such a call creates a task that the client never sees. Whatever
  ends the handler of the call ends the wait and cancels the job; a look at the HTTP exchange finds clients that the SDK
  does not report as gone. The wait is in no store: when its server dies, the client's call ends too, and the job ends
  by itself.

Questions reach 2025-11-25 clients through ``question_delivery.py``: each open question is asked on one channel of the
process at a time, which holds the question's lock; an answer takes the way of ``tasks/update``. A session is notified
of its tasks by trackers that belong to its connection and end with it.

An owner's list is a sorted set of positions (time of creation, then id), kept by the scripts that create and delete
tasks. A cursor is a position, and stays valid whatever is added or removed. The set lives as long as its longest-lived
task. A list removes the expired tasks that it meets, and each addition looks for two of them, which keeps them below
half of the list.
"""

from mcp_celery.protocol.extension import TasksExtension
from mcp_celery.protocol.host import Polling, TaskHost
from mcp_celery.protocol.in_process import SubmittedTask, submit
from mcp_celery.protocol.install import SubjectNamingVerifier, around, middleware_of
from mcp_celery.protocol.plain_clients.polling import add_polling_tools
from mcp_celery.protocol.revisions import REQUESTING_REVISION, RESULT_VERSION, revision_named
from mcp_celery.protocol.shared_wire import IMMEDIATE_RESPONSE
from mcp_celery.protocol.stored_results import Splice

__all__ = [
    "IMMEDIATE_RESPONSE",
    "REQUESTING_REVISION",
    "RESULT_VERSION",
    "Polling",
    "Splice",
    "SubjectNamingVerifier",
    "SubmittedTask",
    "TaskHost",
    "TasksExtension",
    "add_polling_tools",
    "around",
    "middleware_of",
    "revision_named",
    "submit",
]
