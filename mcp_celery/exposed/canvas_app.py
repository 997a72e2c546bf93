"""The Celery app that publishes canvases: as the host's own, but over our connection, and waiting for no result.

What Celery does to publish a chain, group or chord it does in an app: it takes producers from the app's pool, which
wait for a broker as long as the host likes, and has the app's result backend wait for every job, which in a server
would never end. So the signatures are given to this app instead, which has the host's settings, routes and queues.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, cast

import kombu
from celery import Celery
from celery.app import builtins


@dataclass(slots=True)
class _Publishing:
    """One publishing of a canvas.

    Attributes:
        producer: On one of this package's connections.
        timeout_seconds: How long one message may take.
        messages: How many were handed to the broker, the last of them perhaps in vain.
    """

    producer: kombu.Producer
    timeout_seconds: float
    messages: int = 0


_PARTS_OF_CANVASES: Final[Sequence[Callable[[Celery], object]]] = (
    builtins.add_unlock_chord_task,
    builtins.add_accumulate_task,
    builtins.add_map_task,
    builtins.add_starmap_task,
    builtins.add_chunk_task,
)
_publishing: ContextVar[_Publishing] = ContextVar("publishing")


class _Silent:
    """Result backend that never subscribes to results, for code that waits for none."""

    def on_task_call(self, producer: kombu.Producer, task_id: str) -> dict[str, Any]:  # noqa: ARG002
        return {}

    def add_pending_result(self, result: Any, weak: bool = False, start_drainer: bool = True) -> Any:  # noqa: ARG002
        return result


class CanvasApp(Celery):
    """Publishes signatures as a host's app would.

    Args:
        host: Whose settings, routes, queues and jobs count. It is not changed.
    """

    # They prepare the process for its app, and that is the host's.
    builtin_fixups: set[str] = set()  # noqa: RUF012 - as Celery declares it

    def __init__(self, host: Celery) -> None:
        super().__init__(host.main, set_as_current=False)
        self._host: Any = host
        self.conf = host.conf

    def finalize(self, auto: bool = False) -> None:  # noqa: ARG002 - Celery's signature
        """Have the jobs that canvases are made of, and not every ``shared`` job of the process, as other apps have."""
        if not self.finalized:
            self.finalized = True
            for add in _PARTS_OF_CANVASES:
                add(self)

    @property
    def amqp(self) -> Any:
        """The host's own, whose queues it may have added to."""
        return self._host.amqp

    @contextlib.contextmanager
    def publishing(self, producer: kombu.Producer, timeout_seconds: float) -> Generator[_Publishing]:
        """Let what is published in this context go through a producer, each message within a time."""
        publishing = _Publishing(producer, timeout_seconds)
        token = _publishing.set(publishing)
        try:
            yield publishing
        finally:
            _publishing.reset(token)

    def producer_or_acquire(self, producer: kombu.Producer | None = None) -> Any:
        """Ours, where Celery would take one from the pool."""
        return contextlib.nullcontext(producer or _publishing.get().producer)

    def send_task(  # pyright: ignore[reportIncompatibleMethodOverride] - the same, in fewer words
        self, name: str, args: Any = None, kwargs: Any = None, **options: Any
    ) -> Any:
        """Publish one job, with the options that the host's task declares, tried once."""
        publishing = _publishing.get()
        publishing.messages += 1
        task: Any = self._host.tasks.get(name)
        given: dict[str, Any] = options
        if task is not None:
            declared: dict[str, Any] = task._get_exec_options()
            given = {**{key: value for key, value in declared.items() if value is not None}, **options}
            if task._dump_pydantic_arguments is not None and given.get("serializer") != "pickle":
                args, kwargs = task._dump_pydantic_arguments(args or (), kwargs or {})
        # Not as options of the signatures, which a chain's later jobs would take along to the workers.
        timeout = publishing.timeout_seconds
        given |= {"task_type": task, "timeout": timeout, "confirm_timeout": timeout, "retry": False}
        return super().send_task(name, args, kwargs, **given)

    def _get_backend(self) -> Any:
        # Celery has a setting for the class of the backend, and none for what it does when a job is published.
        theirs: Any = self._host.backend
        of_theirs = cast("type[Any]", type(theirs))
        kind: Any = type(f"Silent{of_theirs.__name__}", (_Silent, of_theirs), {})
        return kind(app=self, url=getattr(theirs, "url", None))
