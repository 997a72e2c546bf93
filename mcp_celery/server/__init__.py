"""The server's side put together: a server with tasks, its connections and its workers.

Processes and event loops:

- Server: one event loop. A store client with a pool, one pub/sub connection, one publisher thread with its own broker
  connection (publisher confirms on AMQP), and one more while tasks of several jobs are published. They are opened and
  closed with the server's lifespan.
- Worker's parent: Celery's. Our signal handlers use a blocking Redis client there. The heartbeat's thread has an event
  loop, a store and a publisher of its own, and runs the reaper when it is elected.
- asyncio pool (the default): Celery's tracer runs each job in a greenlet on the pool's event loop; the tool, the signal
  handlers and the storing of the result suspend that greenlet alone.
- prefork child, threads, solo: Celery calls the job in its thread; the job gives a coroutine to the process's one event
  loop and waits. The user's lifespan lives on that loop, entered before the first job and not at process start, where
  prefork ends a child that takes longer than four seconds.
"""

from mcp_celery.server.celery_tasks import CeleryTasks
from mcp_celery.server.task_server import TaskServer

__all__ = ["CeleryTasks", "TaskServer"]
