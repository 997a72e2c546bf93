"""Plug-ins of Celery: signals, bootsteps, and the classes that its settings name.

A cancel holds wherever the job is: the record is cancelled before anything is revoked, and a job starts only where the
record allows it. ``revocations.py`` turns an operator's revoke into a cancel: each worker reads four times a second, in
a thread, the new ids among those that Celery keeps in memory, and cancels their records. ``celery_request.py`` lets
Celery's terminate end a coroutine on the threads pool. ``worker/loop.py`` unwinds a job when prefork's child gets
SIGTERM: first its coroutine, then the threads of its sync tools. Code that cannot be ended learns it from ``ctx``: the
store refuses progress of a task that has ended.
"""
