"""What a worker looks at when it starts."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, signals
from celery.utils.collections import AttributeDict

from mcp_celery.celery import app
from mcp_celery.default_app import default_app
from mcp_celery.worker.celery.bootsteps import ConsumerTimeout


@pytest.mark.parametrize(
    ("broker", "retry", "warned"),
    [
        ("amqp://localhost//", False, True),
        ("amqps://localhost//", False, True),
        ("amqp://localhost//", True, False),
        ("redis://localhost/0", False, False),
    ],
    ids=["amqp", "amqps", "amqp-retry", "redis"],
)
def test_a_worker_that_rabbitmq_could_end_logs_a_warning(
    caplog: pytest.LogCaptureFixture, broker: str, retry: bool, warned: bool
) -> None:
    host = Celery("host", broker=broker, set_as_current=False)
    host.conf.broker_channel_error_retry = retry
    worker = SimpleNamespace(app=host)
    with caplog.at_level(logging.WARNING):
        ConsumerTimeout(worker).start(worker)
    assert ("set broker_channel_error_retry=True" in caplog.text) is warned


def test_the_app_of_this_package_retries_channel_errors() -> None:
    assert default_app.conf.broker_channel_error_retry is True


class TestTheSizeOfTheAsyncioPool:
    """What the app of ``celery -A mcp_celery worker`` makes of its command line and settings."""

    @pytest.mark.parametrize(
        ("said", "settings", "size"),
        [
            ({}, {}, (100, 1000)),
            ({"concurrency": 7}, {}, (None, 0)),
            ({"concurrency": 7}, {"worker_asyncio_grow_to": 50}, (None, 0)),
            ({}, {"worker_concurrency": 7}, (7, None)),
            ({}, {"worker_concurrency": 7, "worker_asyncio_grow_to": 50}, (7, 50)),
            ({}, {"worker_asyncio_grow_to": 0}, (100, 0)),
            ({"pool": "threads"}, {}, (None, None)),
        ],
    )
    def test_a_number_on_the_command_line_fixes_the_pool_size(
        self, said: dict[str, Any], settings: dict[str, Any], size: tuple[int | None, int | None]
    ) -> None:
        conf = AttributeDict(
            {"worker_pool": "mcp_celery.asyncio_pool.pool:TaskPool", "worker_concurrency": None} | settings
        )
        signals.celeryd_init.send("a worker", instance=SimpleNamespace(app=app), conf=conf, options=said)
        assert (conf["worker_concurrency"], conf.get("worker_asyncio_grow_to")) == size

    def test_the_pool_size_of_another_app_is_left_alone(self) -> None:
        conf = AttributeDict(worker_pool="mcp_celery.asyncio_pool.pool:TaskPool", worker_concurrency=None)
        instance = SimpleNamespace(app=Celery(set_as_current=False))
        signals.celeryd_init.send("a worker", instance=instance, conf=conf, options={})
        assert conf == {"worker_pool": "mcp_celery.asyncio_pool.pool:TaskPool", "worker_concurrency": None}
