"""Their jobs, which know nothing of MCP."""

from __future__ import annotations

from typing import Any

from celery import signals

from tests.support.host.celery import app

_seen: list[str] = []


def configuration() -> dict[str, str]:
    """Every setting of the app as this process has it, to be compared."""
    conf: Any = app.conf
    _ = app.amqp.queues  # of which Celery writes the exchanges into the setting
    found = {name: repr(value) for name, value in conf.table(with_defaults=True, censored=False).items()}
    return found | {f"changes.{name}": repr(value) for name, value in conf.changes.items()}


@app.task(name="host.conf", ignore_result=False, serializer="json")
def conf() -> dict[str, str]:
    return configuration()


@app.task(name="host.seen", ignore_result=False, serializer="json")
def seen() -> list[str]:
    """Whose ends this process has seen."""
    return list(_seen)


@signals.task_postrun.connect  # pyright: ignore[reportUntypedFunctionDecorator]
def note(sender: Any = None, **_: Any) -> None:
    """A signal handler of theirs."""
    _seen.append(sender.name)
