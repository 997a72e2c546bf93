"""Changes to the tasks of an app, so that Celery's own tracer awaits their bodies.

The tracer calls ``task.run(*args, **kwargs)``, or ``task(...)`` for a class with a ``__call__`` of its own, which in
the end calls ``self.run``; it takes whatever comes back for the result. So the place to await is around ``run``, and an
attribute of the *instance* puts something there without touching Celery, the user's classes, or other processes.
Celery adds ``autoretry_for`` just so (``celery/app/autoretry.py``), and Sentry its spans. Task classes, ``app.Task`` or
``__trace__`` would be worse: users have base classes of their own, and a tracer is built anew whenever the worker has
connected to its broker.

What stands there does nothing unless the tracer of a job of this pool calls it: ``await other_task()`` in a job, eager
calls in tests, and every other process still get what the function returns.
"""

from __future__ import annotations

import functools
import inspect
import logging
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

from celery import Celery, _state
from celery.app import trace
from celery.app.task import Task
from celery.exceptions import ImproperlyConfigured
from celery.utils.threads import LocalManager
from greenlet import getcurrent

from mcp_celery.asyncio_pool.current import current_job
from mcp_celery.asyncio_pool.job import Job

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    AnyTask = Task[..., Any]
else:
    AnyTask = Task  # generic at run time since Celery 5.7 only

_adapted: Final[weakref.WeakKeyDictionary[AnyTask, bool]] = weakref.WeakKeyDictionary()
"""Those that are adapted, for whatever pool of this process, and whether they run on the loop."""


def _strand_ident() -> Any:
    """Whose stack of tasks and requests this is.

    Celery asks for the greenlet or the thread. Inside a job it is the job, so that ``self.request`` and
    ``current_task`` are also right in the asyncio tasks and the threads that it starts.
    """
    job = current_job()
    return getcurrent() if job is None else job


def share_stacks(*stacks: Any) -> None:
    """Have stacks of tasks or requests belong to jobs.

    Raises:
        ImproperlyConfigured: They belong to threads, and the jobs on a loop would see each other's.
    """
    for stack in stacks:
        if not hasattr(stack, "__ident_func__"):
            raise ImproperlyConfigured("USE_FAST_LOCALS cannot be used with the asyncio pool: unset the variable")
    LocalManager(list(stacks), ident_func=_strand_ident)


class Bodies:
    """The tasks of an app, as the pool runs them.

    Args:
        app: The worker's app.
        hostname: The worker's node name.
    """

    def __init__(self, app: Celery, hostname: str | None) -> None:
        self._app = app
        self._hostname = hostname
        self._places: dict[str, tuple[AnyTask, bool]] = {}
        share_stacks(cast(Any, _state)._task_stack)

    def adapt_all(self) -> None:
        """Adapt every task that is registered now."""
        for name in list(self._app.tasks):
            self.on_loop(name)

    def on_loop(self, name: str) -> bool:
        """Whether the jobs of a task run on the event loop. One that was registered meanwhile is adapted now.

        Args:
            name: Name of a registered task.
        """
        task: AnyTask = self._app.tasks[name]
        known = self._places.get(name)
        if known is None or known[0] is not task:
            if task not in _adapted:
                self._adapt(task)
            known = self._places[name] = (task, _adapted[task])
        return known[1]

    def _adapt(self, task: AnyTask) -> None:
        on_loop = _belongs_on_loop(task)  # which is not seen any more behind what is put around it
        share_stacks(task.request_stack)
        attribute = "_orig_run" if hasattr(task, "_orig_run") else "run"
        setattr(task, attribute, _awaiting(task, getattr(task, attribute)))
        _adapted[task] = on_loop
        if task.__trace__ is not None:  # the tracer has taken hold of what stood there before
            task.__trace__ = trace.build_tracer(task.name, task, self._app.loader, self._hostname, app=self._app)
        if inspect.iscoroutinefunction(type(task).__call__):
            logger.error(
                "%s has a __call__ that is `async def`, which Celery does not await: make `run` the coroutine",
                task.name,
            )


def _belongs_on_loop(task: AnyTask) -> bool:
    """What the task says (``run_on_loop``), else whether its body is ``async def``.

    A decorated body is taken as it looks from outside: a wrapper that calls ``asyncio.run`` is not ``async def``, and
    would fail on a running loop.
    """
    wish: bool | None = getattr(task, "run_on_loop", None)
    body = getattr(task, "_orig_run", task.run)
    return inspect.iscoroutinefunction(body) if wish is None else bool(wish)


def _awaiting(task: AnyTask, body: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(body)
    def run(*args: Any, **kwargs: Any) -> Any:
        job = current_job()
        if isinstance(job, Job) and job.begins(task.request_stack.top):
            return job.run_body(body, args, kwargs)
        return body(*args, **kwargs)

    return run
