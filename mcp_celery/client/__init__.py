"""The client's half of tasks: for ``mcp.client.Client``, and for any server of SEP-2663 or SEP-1686.

It imports neither Celery nor Redis. One ``TaskFollower`` a session follows all its tasks:

- Push (``push.py``): one ``subscriptions/listen`` stream names up to 256 tasks. A later task has the stream opened
  again with all of them, and the earlier stream is closed when the new one is acknowledged. An acknowledgement without
  ``taskIds``, or a refusal, ends the attempts for the session. A broken stream is opened again after a pause that
  doubles. A task of which two streams in a row sent nothing before they broke is left out of the next one and polled;
  suspects are named last and in reverse, so that the server gets to the states of the others before.
- Polling (``tracker.py``): each task has a time at which it is due. Without push that is the server's interval, times a
  back-off while nothing changes. With push it is once after the acknowledgement, and then after two seconds and half of
  the time without a push, 24 seconds at most: a server pushes no large result, and a push is a hint. At most 16
  requests run at a time, 4 of them for tasks whose last request got no answer. Each pause is up to a quarter longer by
  chance.
- States (``tracked_task.py``): a final state stays; a push that is older than the known state is dropped. One event for
  each change wakes the waiting code, which sees the newest state. The follower holds weak references only: a task is
  followed as long as the program holds its handle.
- Questions (``questions.py``): a question's key is remembered when a callback gets it, so it is asked once. An answer
  is sent until the server has acknowledged or refused it.
- Revisions (``revisions.py``, ``session.py``): one object for a session has the methods of its revision. Nothing else
  here compares versions.
- The SDK's seams (``session.py``): its ``listen()`` cannot name tasks, so it gets a stand-in for the session that adds
  them; background work runs in the session's task group and ends with it. ``call_tool_task`` is an ordinary
  ``Client.call_tool`` whose claim on the result returns the task instead of waiting (``extension.py``), so rounds of
  questions before the task, and retries, are the SDK's own.
- 2025-11-25 (``v2025_11_25.py``): the channel asks for the result in addition to the state, makes tasks only of tools
  whose ``execution.taskSupport`` allows it, and sends requests one layer below the SDK's checks, which refuse the
  answer to a request with ``task``. While a task is ``input_required`` a ``tasks/result`` stays open, on which the
  server can ask the client's callbacks. A tool's own error is ``completed`` with ``is_error``, as in later revisions.
- HTTP (``http.py``): the SDK's transport takes an error of the connection for the end of the client; ``resilient_http``
  answers for a server that cannot be reached, so that only the one request fails. It takes answers and events of 97
  MiB, three times the largest result (the SDK's server escapes what is not ASCII), and announces that in each
  ``subscriptions/listen``. It spaces the fetches of a stream that the server ends at once, and waits ten seconds at
  most for a server to take a message that has no answer, since the SDK sends nothing else meanwhile.
"""

from mcp_celery.client.errors import (
    AnswerError,
    ClientClosedError,
    InvalidTaskError,
    TaskCancelledError,
    TaskEndedError,
    TaskError,
    TaskFailedError,
    TaskGoneError,
    TaskTimeoutError,
    TaskUnreachableError,
)
from mcp_celery.client.extension import TasksClient
from mcp_celery.client.handle import TaskHandle
from mcp_celery.client.http import resilient_http
from mcp_celery.client.start import call_tool_task, get_prompt_task, list_tasks, read_resource_task
from mcp_celery.client.wire import Progress, TaskState

__all__ = [
    "AnswerError",
    "ClientClosedError",
    "InvalidTaskError",
    "Progress",
    "TaskCancelledError",
    "TaskEndedError",
    "TaskError",
    "TaskFailedError",
    "TaskGoneError",
    "TaskHandle",
    "TaskState",
    "TaskTimeoutError",
    "TaskUnreachableError",
    "TasksClient",
    "call_tool_task",
    "get_prompt_task",
    "list_tasks",
    "read_resource_task",
    "resilient_http",
]
