"""Whether a broker is a Redis in cluster mode, and whether kombu can use it there.

Managed services offer Redis with one shard in cluster mode. kombu sends commands on several keys, which a server in
cluster mode takes only if their names have one hash tag: kombu's option ``global_keyprefix`` gives them one.

Source: ``kombu.transport.redis``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import kombu
import redis

from mcp_celery.common.cluster_url import has_hash_tag
from mcp_celery.common.redis_hello import is_in_cluster_mode

REDIS: Final = "redis"
"""The type of kombu's transports for Redis and Sentinel."""
SEVERAL_SHARDS: Final = (
    "it is a Redis Cluster of several shards, which Celery cannot use as its broker: use RabbitMQ, or a Redis with one "
    "shard"
)
NO_TAG: Final = (
    "it is a Redis in cluster mode, which refuses Celery's commands on several keys: set "
    "broker_transport_options={'global_keyprefix': '{celery}:'} in your Celery app, or MCP_CELERY_HASH_TAGS=true where "
    "you have no app of your own"
)


def cluster_mode_problem(connection: kombu.Connection) -> str | None:
    """Why kombu cannot use a Redis in cluster mode as broker; None where it can, or the broker is another.

    Args:
        connection: An open connection to the broker.

    Raises:
        Exception: The broker does not answer; the error is kombu's or redis-py's.
    """
    if connection.transport.driver_type != REDIS:
        return None
    channel: Any = connection.default_channel
    client: Any = channel.client
    try:
        if not is_in_cluster_mode(client.execute_command("HELLO")):
            return None
        found: Mapping[str, Any] = client.execute_command("CLUSTER INFO")
    except redis.ResponseError:
        return None  # its user may not ask, it is old, or it is a proxy
    shards = int(found.get("cluster_size", 1))
    if shards > 1:
        return SEVERAL_SHARDS
    return None if has_hash_tag(channel.global_keyprefix) else NO_TAG
