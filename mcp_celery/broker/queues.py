"""The queues of servers: how they are declared, and what RabbitMQ refuses of them.

RabbitMQ refuses to declare a queue in two ways. So servers and workers declare each queue by :func:`queue_of`, whatever
their process knows of the app's configuration.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import kombu
from celery import Celery

from mcp_celery.errors import ConfigurationError

_PRECONDITION_FAILED: Final = "406"
_REFUSED: Final = re.compile(
    r"(?:inequivalent|invalid) (?:arg|property) '(?P<argument>[^']*)' for (?P<kind>queue|exchange) '(?P<name>.*?)' in"
)
"""What RabbitMQ says of a declaration that it refuses. Other failed preconditions, such as a message that was not
acknowledged in time, have other texts.
"""
_CURRENT: Final = re.compile(r"but current is (?:none|(?:the value )?'(?P<value>.*?)'(?: of type '(?P<type>\w+)')?)$")
_ATTRIBUTES: Final = ("durable", "auto_delete", "exclusive")
"""What a queue has besides its arguments."""
_MOST_DIFFERENCES: Final = 20
FIRST_WITH_PRIORITIES: Final = 4
"""The major version of RabbitMQ from which on its quorum queues have priorities."""


def queue_of(app: Celery, name: str, *, is_default: bool = False) -> kombu.Queue:
    """A queue as servers and workers both declare it.

    It is the host's, with the arguments that the host gave it, or else made as the host's settings say (its type, its
    highest priority), but not among the host's. Never a bare name, which is refused under
    ``task_create_missing_queues=False``.

    Args:
        app: The Celery app whose queue it is. It is not changed.
        name: Name or alias of the queue.
        is_default: Whether workers of the app have it as their default queue, also where ``task_default_queue`` of this
            process names another one: ``task_default_queue_type``, ``task_default_exchange``,
            ``task_default_exchange_type`` and ``task_default_routing_key`` hold for it, instead of
            ``task_create_missing_queue_type`` and ``task_create_missing_queue_exchange_type``.
    """
    amqp: Any = app.amqp
    if name in amqp.queues or name in amqp.queues.aliases:
        return amqp.queues[name]
    if is_default:
        return amqp.Queues((_default_queue(app, name),))[name]
    return amqp.Queues({}, create_missing=True)[name]


def _default_queue(app: Celery, name: str) -> kombu.Queue:
    """As ``Celery.amqp`` makes the default queue of a worker whose ``task_default_queue`` is this name."""
    conf: Any = app.conf
    # The attributes `conf.task_default_…` would give the name of this process's default queue where none is set.
    exchange = kombu.Exchange(conf.get("task_default_exchange") or name, conf.task_default_exchange_type)
    arguments = {"x-queue-type": "quorum"} if conf.get("task_default_queue_type") == "quorum" else None
    return kombu.Queue(name, exchange, conf.get("task_default_routing_key") or name, queue_arguments=arguments)


def arguments_of(queue: kombu.Queue) -> dict[str, Any]:
    """What a queue is declared with, as RabbitMQ compares it: its arguments and attributes."""
    found: Any = queue
    return {**(found.queue_arguments or {}), **{name: bool(getattr(found, name)) for name in _ATTRIBUTES}}


def is_quorum(queue: kombu.Queue) -> bool:
    """Whether a queue is declared as a quorum queue."""
    return arguments_of(queue).get("x-queue-type") == "quorum"


@dataclass(frozen=True, slots=True)
class QueueUse:
    """What a component wants of its queue.

    Attributes:
        component: The component, for people: ``tool:build_report``.
        queue: Where its jobs go.
        priority: Their priority, None for none.
    """

    component: str
    queue: kombu.Queue
    priority: int | None

    @property
    def wants_priorities(self) -> bool:
        """Whether it wants priorities of a quorum queue."""
        has_priority = self.priority is not None or "x-max-priority" in arguments_of(self.queue)
        return is_quorum(self.queue) and has_priority


def require_priorities(uses: Iterable[QueueUse], connection: kombu.Connection) -> None:
    """Refuse priorities on the quorum queues of a RabbitMQ that has none there. Other brokers have no quorum queues.

    Args:
        uses: What the components want.
        connection: A connection to the broker. It is opened if it is not.

    Raises:
        ConfigurationError: One of them wants priorities.
    """
    version = rabbitmq_version(connection)
    if version is None or version[0] >= FIRST_WITH_PRIORITIES:
        return
    for use in uses:
        if not use.wants_priorities:
            continue
        wanted = (
            f"task_queue_max_priority or x-max-priority={arguments_of(use.queue).get('x-max-priority')}"
            if use.priority is None
            else f"priority={use.priority} of {use.component} (TaskConfig, task_routes or task_default_priority)"
        )
        raise ConfigurationError(
            f"{wanted} has no effect: {use.queue.name!r} is a quorum queue, and RabbitMQ "
            f"{'.'.join(map(str, version))} has priorities on classic queues only ({FIRST_WITH_PRIORITIES}.0 and later "
            "on quorum queues too); remove the priority, make the queue a classic one, or upgrade RabbitMQ"
        )


def rabbitmq_version(connection: kombu.Connection) -> tuple[int, ...] | None:
    """The version of the RabbitMQ at the end of a connection; None for another broker, or where it does not say."""
    broker: Any = connection
    if broker.transport.driver_type != "amqp":
        return None
    properties: Any = getattr(broker.connection, "server_properties", None) or {}
    if properties.get("product") != "RabbitMQ":
        return None
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", str(properties.get("version", "")))
    return None if found is None else tuple(int(part) for part in found.groups(default="0"))


def declare(queue: kombu.Queue, connection: kombu.Connection) -> str | None:
    """Declare a queue.

    Args:
        queue: The queue.
        connection: An open connection to the broker.

    Returns:
        None where the broker has it now, else why it refuses, as :func:`refusal_of`.

    Raises:
        Exception: The transport's errors, for anything else than a refused declaration.
    """
    broker: Any = connection
    channel = broker.channel()
    try:
        queue(channel).declare()
    except broker.channel_errors as error:
        refusal = refusal_of(error, queue, connection)
        if refusal is None:
            raise
        return refusal
    channel.close()
    return None


def is_refusal(error: BaseException) -> bool:
    """Whether an error of a transport says that RabbitMQ refuses to declare a queue or an exchange."""
    return _refused(error) is not None


def refusal_of(error: BaseException, queue: kombu.Queue, connection: kombu.Connection) -> str | None:
    """Explain why RabbitMQ refuses a declaration.

    Args:
        error: What the transport raised.
        queue: What was declared.
        connection: An open connection to the broker.

    Returns:
        One line that names the arguments of both sides, and what to do. None where the error says something else.
    """
    refused = _refused(error)
    if refused is None:
        return None
    text = str(getattr(error, "reply_text", error)).removeprefix("PRECONDITION_FAILED - ")
    kind, name = refused["kind"], refused["name"]
    if kind == "exchange" or not text.startswith("inequivalent"):
        return (
            f"RabbitMQ refuses the {kind} {name!r} as the settings declare it ({text}). Change task_queues, "
            "task_default_queue_type, task_queue_max_priority or task_default_exchange_type of servers and workers, "
            f"or delete the {kind}"
        )
    existing = _existing(queue, connection)
    return (
        f"the queue {name!r} exists in RabbitMQ with other arguments ({_shown(existing)}) than the settings declare "
        f"({_shown(arguments_of(queue))}): {text}. Delete the queue (its messages are lost), or change task_queues, "
        "task_default_queue_type, task_create_missing_queue_type or task_queue_max_priority of servers and workers to "
        "what exists"
    )


def _refused(error: BaseException) -> re.Match[str] | None:
    if str(getattr(error, "reply_code", "")) != _PRECONDITION_FAILED:
        return None
    return _REFUSED.search(str(getattr(error, "reply_text", "")))


def _existing(queue: kombu.Queue, connection: kombu.Connection) -> dict[str, Any]:
    """What a queue exists with, as far as RabbitMQ says so: AMQP reports one difference for each declaration.

    Each one is declared away, until RabbitMQ takes the declaration, which changes nothing of a queue that exists.
    """
    broker: Any = connection
    known = arguments_of(queue)
    for _ in range(_MOST_DIFFERENCES):
        channel = broker.channel()
        attributes = {name: known[name] for name in _ATTRIBUTES}
        arguments = {name: value for name, value in known.items() if name not in _ATTRIBUTES}
        try:
            channel.queue_declare(queue=queue.name, arguments=arguments, **attributes)
        except broker.channel_errors as error:
            if not _adopt(error, known):
                break
        else:
            channel.close()
            break
    if known.get("x-queue-type") == "quorum":
        known.pop("x-max-priority", None)  # it has none, and RabbitMQ does not compare it
    return known


def _adopt(error: BaseException, known: dict[str, Any]) -> bool:
    """Take the argument of the queue that exists. False: it is not understood."""
    refused = _refused(error)
    current = _CURRENT.search(str(getattr(error, "reply_text", "")))
    if refused is None or current is None:
        return False
    name, value, kind = refused["argument"], current["value"], current["type"]
    before = known.get(name)
    if value is None:
        known.pop(name, None)
    elif value in ("true", "false"):
        known[name] = value == "true"
    elif value.lstrip("-").isdigit() and (kind != "longstr" if kind else not isinstance(before, str)):
        known[name] = int(value)
    else:
        known[name] = value
    return known.get(name) != before


def _shown(arguments: dict[str, Any]) -> str:
    """Arguments for people: those that differ from a plain durable queue's."""
    usual = {"durable": True, "auto_delete": False, "exclusive": False}
    shown = [f"{name}={value!r}" for name, value in sorted(arguments.items()) if usual.get(name) != value]
    return ", ".join(shown) or "none"
