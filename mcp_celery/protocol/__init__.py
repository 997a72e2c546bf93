"""The wire: which requests become tasks, how tasks are shown, and how changes are pushed."""

from mcp_celery.protocol.extension import TasksExtension
from mcp_celery.protocol.host import Polling, TaskHost
from mcp_celery.protocol.in_process import SubmittedTask, submit
from mcp_celery.protocol.install import SubjectNamingVerifier, around, middleware_of
from mcp_celery.protocol.polling import add_polling_tools
from mcp_celery.protocol.revisions import REQUESTING_REVISION, RESULT_VERSION, revision_named
from mcp_celery.protocol.shared_wire import IMMEDIATE_RESPONSE

__all__ = [
    "IMMEDIATE_RESPONSE",
    "REQUESTING_REVISION",
    "RESULT_VERSION",
    "Polling",
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
