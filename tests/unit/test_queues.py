"""Queues as servers and workers declare them, and what is made of RabbitMQ's refusals."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import kombu
import pytest
from celery import Celery
from celery.exceptions import WorkerShutdown

from mcp_celery.broker.queues import QueueUse, arguments_of, is_refusal, queue_of, rabbitmq_version, require_priorities
from mcp_celery.errors import ConfigurationError
from mcp_celery.worker.consumer import Consumer

QUORUM = {"x-queue-type": "quorum"}


def app_with(**conf: Any) -> Celery:
    app = Celery("host", set_as_current=False)
    app.conf.update(conf)
    return app


def made(queue: kombu.Queue) -> tuple[Any, ...]:
    found: Any = queue
    return (found.name, found.exchange.name, found.exchange.type, found.routing_key, found.queue_arguments or {})


@pytest.mark.parametrize(
    "conf",
    [
        {},
        {"task_default_queue_type": "quorum"},
        {"task_default_queue_type": "quorum", "task_default_exchange_type": "topic"},
        {"task_default_exchange": "jobs", "task_default_routing_key": "ours"},
        {"task_queue_max_priority": 9},
        {"task_create_missing_queues": False, "task_queues": [kombu.Queue("other")]},
    ],
    ids=str,
)
def test_the_default_queue_is_the_same_whatever_the_process_calls_it(conf: dict[str, Any]) -> None:
    """A server does not set ``task_default_queue``; the worker of ``-A mcp_celery`` does."""
    in_server = app_with(**conf)
    in_worker = app_with(task_default_queue="mcp.shop", **{k: v for k, v in conf.items() if k != "task_queues"})
    assert made(queue_of(in_server, "mcp.shop", is_default=True)) == made(in_worker.amqp.queues["mcp.shop"])
    assert "mcp.shop" not in in_server.amqp.queues, "the app's own queues stay as they are"


def test_an_entry_of_the_hosts_task_queues_is_used_unchanged() -> None:
    arguments = {**QUORUM, "x-dead-letter-exchange": "dead"}
    theirs = kombu.Queue("mcp.shop", routing_key="shop", alias="shop", queue_arguments=dict(arguments))
    app = app_with(task_queues=[theirs], task_create_missing_queue_type="classic")
    for name in ("mcp.shop", "shop"):
        assert queue_of(app, name, is_default=True) is app.amqp.queues["mcp.shop"]
    assert arguments_of(theirs).items() >= arguments.items()


def test_another_queue_of_a_host_is_declared_as_its_settings_say() -> None:
    app = app_with(task_create_missing_queue_type="quorum", task_create_missing_queues=False)
    assert arguments_of(queue_of(app, "mcp.shop"))["x-queue-type"] == "quorum"


class _AMQPError(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.reply_code, self.reply_text = code, text


@pytest.mark.parametrize(
    ("code", "text", "refused"),
    [
        (406, "PRECONDITION_FAILED - inequivalent arg 'x-max-length' for queue 'q' in vhost '/': received …", True),
        (406, "PRECONDITION_FAILED - invalid arg 'x-max-priority' for queue 'q' in vhost '/' of queue type …", True),
        (406, "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'q' in vhost '/': received …", True),
        (406, "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value used: …", False),
        (406, "PRECONDITION_FAILED - unknown delivery tag 7", False),
        (404, "NOT_FOUND - no queue 'q' in vhost '/'", False),
    ],
)
def test_a_refused_declaration_is_distinguished_from_other_errors(code: int, text: str, refused: bool) -> None:
    error = _AMQPError(code, text)
    assert is_refusal(error) is refused


def test_a_worker_that_connects_again_ends_where_its_queue_is_refused() -> None:
    consumer: Any = object.__new__(Consumer)
    consumer.connection = Mock()
    refused = _AMQPError(406, "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q' in vhost '/': received …")
    with pytest.raises(WorkerShutdown) as ended:
        consumer.on_connection_error_after_connected(refused)
    assert ended.value.code == 1


def broker(driver: str, **properties: str) -> Any:
    return Mock(transport=Mock(driver_type=driver), connection=Mock(server_properties=properties))


@pytest.mark.parametrize(
    ("connection", "version"),
    [
        (broker("amqp", product="RabbitMQ", version="3.13.7"), (3, 13, 7)),
        (broker("amqp", product="RabbitMQ", version="4.1.0-rc.2"), (4, 1, 0)),
        (broker("amqp", product="LavinMQ", version="2.0.0"), None),
        (broker("redis"), None),
    ],
)
def test_the_version_of_rabbitmq_is_read_from_its_connection(connection: Any, version: tuple[int, ...] | None) -> None:
    assert rabbitmq_version(connection) == version


@pytest.mark.parametrize(("version", "refused"), [("3.13.7", True), ("4.0.2", False)])
def test_priorities_of_quorum_queues_need_rabbitmq_4(version: str, refused: bool) -> None:
    connection = broker("amqp", product="RabbitMQ", version=version)
    uses = [
        QueueUse("tool:plain", kombu.Queue("classic", queue_arguments={"x-max-priority": 9}), 5),
        QueueUse("tool:plain", kombu.Queue("jobs", queue_arguments=QUORUM), None),
    ]
    require_priorities(uses, connection)
    uses.append(QueueUse("tool:urgent", kombu.Queue("jobs", queue_arguments=QUORUM), 5))
    if refused:
        with pytest.raises(ConfigurationError, match=r"priority=5 of tool:urgent .* 'jobs' is a quorum queue"):
            require_priorities(uses, connection)
    else:
        require_priorities(uses, connection)
