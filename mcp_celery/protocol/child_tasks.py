"""asyncio tasks of components in the server's own process: the one that runs a component, and those that it starts.

What some of their exceptions do to an event loop, ``GuardedCoroutine`` says. A worker runs its loop again
(``worker/loop.py``). A server's loop belongs to uvicorn, the SDK or a host, so here asyncio must not see them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from mcp_celery.base_exceptions import GuardedCoroutine

TaskFactory = Callable[..., Any]

_guarded: ContextVar[bool] = ContextVar("mcp_celery_guarded", default=False)
"""Whether the running code is a component's. Its asyncio tasks and threads inherit that."""


@contextmanager
def guarding() -> Generator[None]:
    """Guard the asyncio tasks that the running code starts, where the loop is :func:`prepared`."""
    token = _guarded.set(True)
    try:
        yield
    finally:
        _guarded.reset(token)


@contextmanager
def prepared() -> Generator[None]:
    """Add a task factory to the running event loop; the last to leave takes it away. Other tasks stay as they are."""
    loop = asyncio.get_running_loop()
    factory: Any = loop.get_task_factory()
    if not isinstance(factory, _GuardingFactory):
        factory = _GuardingFactory(factory)
        loop.set_task_factory(factory)
    factory.users += 1
    try:
        yield
    finally:
        factory.users -= 1
        if not factory.users and loop.get_task_factory() is factory:
            loop.set_task_factory(factory.before)


class _GuardingFactory:
    """A task factory that guards the tasks of components.

    Args:
        before: The loop's own factory, which makes the tasks.
    """

    def __init__(self, before: TaskFactory | None) -> None:
        self.before = before
        self.users = 0

    def __call__(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
        if _guarded.get() and asyncio.iscoroutine(coroutine):
            coroutine = GuardedCoroutine(coroutine)
            if (context := options.get("context")) is not None and not context.get(_guarded):
                context.run(_guarded.set, True)  # else the tasks that this one starts would be without
        make: TaskFactory = self.before or _new_task
        return make(loop, coroutine, **options)


def _new_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    return asyncio.Task(coroutine, loop=loop, **options)
