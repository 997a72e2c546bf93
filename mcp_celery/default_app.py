"""The Celery app of people who bring none of their own. Its settings are ``MCP_CELERY_*``, read when first needed.

Every setting that Celery reads from elsewhere (``CELERY_CONFIG_MODULE``, ``--config``, ``config_from_object``,
``app.conf``, ``CELERY_BROKER_URL``) wins, whatever it is about. ``Celery.add_defaults`` would put ours in front of a
configuration module, so they are put behind it instead, each time that Celery loads its configuration.

It never becomes the current app by being imported: a host's ``shared_task`` must not land in it. Nor the default app,
which Celery's fix-up for Django would make of the first app that it meets; ``mcp_celery.celery`` has that fix-up.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, Final

from celery import Celery

from mcp_celery.broker.naming import default_queue_name
from mcp_celery.errors import ConfigurationError
from mcp_celery.settings import ENV_PREFIX, MEMORY_URL, Settings, WorkerTransport

_CONSUMERS: Final[Mapping[WorkerTransport, str]] = {
    "batched": "mcp_celery.worker.batched_consumer:Consumer",
    "kombu": "mcp_celery.worker.consumer:Consumer",
}


def configuration() -> dict[str, Any]:
    """Celery's settings for :data:`default_app`, each of them a default.

    Raises:
        ConfigurationError: A ``MCP_CELERY_*`` variable is refused.
    """
    settings = Settings.load()
    found: dict[str, Any] = {
        **settings.celery_broker,
        **settings.celery_results,
        # A result lives at least as long as its task; the record says when the task is over.
        "result_expires": math.ceil(settings.max_ttl_ms / 1000),
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        # Jobs are long: one that waits behind another is better taken by a free worker.
        "worker_prefetch_multiplier": 1,
        # Tools wait on networks: one process holds many of them. Other pools: `-P threads`, `-P solo`, and prefork by
        # `-P processes`, since Celery takes `-P prefork`, its own default, for nothing said.
        "worker_pool": "mcp_celery.asyncio_pool.pool:TaskPool",
        # Flower and `celery events` show every job.
        "worker_send_task_events": True,
        # Tools may use sys.stdout.fileno(), which the streams that Celery puts in place of the standard ones lack.
        "worker_redirect_stdouts": False,
        "broker_connection_retry_on_startup": True,
        # On a dead connection Celery would wait for two minutes, and the job with it. Storing a result is tried again.
        "redis_socket_timeout": 10.0,
        "redis_socket_connect_timeout": 10.0,
        "worker_consumer": _CONSUMERS[settings.worker_transport],
        # RabbitMQ closes a worker's channel when a job lasts longer than its `consumer_timeout`. Celery would end the
        # worker; this way it opens another, the job goes on, and its message, delivered again, is dropped.
        "broker_channel_error_retry": True,
        # Connected again, Celery would raise the number of prefetched messages little by little, from the threads of
        # the threads pool: two of them on one AMQP connection wait for each other for ever.
        "worker_enable_prefetch_count_reduction": False,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
    }
    queue = settings.queue or (settings.namespace and default_queue_name(settings.namespace))
    if queue:
        found["task_default_queue"] = queue
    return found


default_app = Celery("mcp_celery", set_as_current=False, fixups=[])


_explicit: dict[str, Any] = {}


def configured_queue() -> str | None:
    """The ``task_default_queue`` of Celery's own configuration, None where it names none."""
    _ = default_app.conf.task_default_queue  # loads the configuration
    return _explicit.get("task_default_queue")


def broker_of(app: Celery) -> str | None:
    """The broker that an app is configured with; None where it has none.

    ``memory://`` does not count: this module's app has it where tasks are kept in memory.
    """
    url: str | None = app.conf.broker_url
    if app is default_app:
        settings = Settings.load()
        if settings.broker_url is None and url == settings.celery_broker_url:
            return None
    return None if url == MEMORY_URL else url


def require_broker(settings: Settings) -> None:
    """See that :data:`default_app` has a broker where tasks are kept in a Redis Cluster, which is none. Elsewhere the
    Redis of the tasks is the broker by default.

    Raises:
        ConfigurationError: It is missing. The text names the setting.
    """
    conf: Any = default_app.conf
    if settings.is_cluster and not (conf.broker_url or conf.broker_write_url or conf.task_always_eager):
        raise ConfigurationError(
            f"{ENV_PREFIX}REDIS_URL names a Redis Cluster, which Celery cannot use as its broker: set "
            f"{ENV_PREFIX}BROKER_URL"
        )


_OPTIONS: Final = {
    ("broker_url", "broker_read_url", "broker_write_url"): ("broker_transport_options", "broker_use_ssl"),
    ("result_backend",): ("redis_backend_use_ssl", "result_backend_transport_options"),
}
"""Settings that go with this package's URL, and not with another one."""


def _leave_out_options(ours: dict[str, Any], source: Any) -> None:
    """Leave out the options of this package's broker or result backend where Celery's configuration names another."""
    for urls, options in _OPTIONS.items():
        if any(source.value_set_for(name) or os.environ.get(f"CELERY_{name.upper()}") for name in urls):
            for name in options:
                ours.pop(name, None)


_JOINED: Final = ("broker_transport_options", "result_backend_transport_options")


def _join_options(ours: dict[str, Any], source: Any, name: str) -> None:
    """Let the transport options of Celery's configuration join those of our URL, and win.

    Args:
        ours: Our settings.
        source: Celery's.
        name: Which options.
    """
    if name not in ours or not source.value_set_for(name):
        return
    joined = {**ours.pop(name), **source[name]}
    if name in source.changes:  # set in code, before the configuration was loaded
        source[name] = joined
    else:
        source.defaults.insert(0, {name: joined})
        source.maps.insert(1, {name: joined})


def _add_defaults(source: Any = None, **_: Any) -> None:
    """Put our defaults between what is configured and Celery's own defaults, which are the last of the maps."""
    _explicit.clear()
    if source.value_set_for("task_default_queue"):
        _explicit["task_default_queue"] = source.task_default_queue
    ours = configuration()
    _leave_out_options(ours, source)
    for name in _JOINED:
        _join_options(ours, source, name)
    source.defaults.insert(len(source.defaults) - 1, ours)
    source.maps.insert(len(source.maps) - 1, ours)


default_app.on_after_configure.connect(_add_defaults, weak=False, dispatch_uid="mcp_celery.add_defaults")
