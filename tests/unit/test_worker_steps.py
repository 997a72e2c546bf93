"""What a worker looks at when it starts."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
from celery import Celery

from mcp_celery.default_app import default_app
from mcp_celery.worker.steps import ConsumerTimeout


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
def test_a_worker_that_rabbitmq_could_end_says_so(
    caplog: pytest.LogCaptureFixture, broker: str, retry: bool, warned: bool
) -> None:
    app = Celery("host", broker=broker, set_as_current=False)
    app.conf.broker_channel_error_retry = retry
    worker = SimpleNamespace(app=app)
    with caplog.at_level(logging.WARNING):
        ConsumerTimeout(worker).start(worker)
    assert ("set broker_channel_error_retry=True" in caplog.text) is warned


def test_ours_is_none_of_them() -> None:
    assert default_app.conf.broker_channel_error_retry is True
