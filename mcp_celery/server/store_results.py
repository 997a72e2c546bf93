"""Celery's result backend where keys have hash tags: results are kept in the store of the tasks, over its connection.

Celery has no result backend for a Redis Cluster, and its backend for Redis gives the result of each job a slot of its
own. Here the result of a task's job has the tag of its namespace, so that one script stores it and ends the task
(``finish.lua``). Everything else that Celery keeps (results of other jobs, groups, chords) has one tag for all
namespaces.

A process that waits for a result asks for it every half second, as Celery does with databases.

Source: ``celery.backends.base.KeyValueStoreBackend``.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, cast

import redis
from celery import Celery
from typing_extensions import override

from mcp_celery.broker.own_results import OwnResults
from mcp_celery.common.cluster_url import shared_root
from mcp_celery.errors import ConfigurationError
from mcp_celery.keys import is_shortened, task_key_from_job_id
from mcp_celery.logs import get_logger
from mcp_celery.server.connections import backend_of
from mcp_celery.settings import Settings
from mcp_celery.store import RedisBackend, call_blocking

if TYPE_CHECKING:

    class _Results(OwnResults):
        task_keyprefix: str | bytes
        group_keyprefix: str | bytes
        chord_keyprefix: str | bytes
        expires: int | None
        chord_expires: int | None
        url: str | None

        def __init__(self, app: Celery, **options: Any) -> None: ...
        def get_key_for_task(self, task_id: Any, key: Any = "") -> bytes: ...
else:
    _Results = OwnResults

logger = get_logger(__name__)

Answer = TypeVar("Answer")

STORING_SECONDS: Final = 30.0
"""For how long storing a result is tried: until a replica has taken the place of a master that failed."""
FIRST_PAUSE_SECONDS: Final = 0.1
LONGEST_PAUSE_SECONDS: Final = 2.0
_LOST: Final = (redis.ConnectionError, redis.TimeoutError, redis.ReadOnlyError, OSError)


class StoreResults(_Results):
    """Results in the Redis of ``MCP_CELERY_REDIS_URL``.

    Args:
        app: The Celery app.
        **options: Celery's.

    Raises:
        ConfigurationError: ``MCP_CELERY_REDIS_URL`` names no Redis.
    """

    implements_incr = True
    persistent = True
    supports_result_compression = True

    def __init__(self, app: Celery, **options: Any) -> None:
        settings = Settings.load()
        store = backend_of(settings)
        if not isinstance(store, RedisBackend):
            raise ConfigurationError("results can be kept in the store only where MCP_CELERY_REDIS_URL names a Redis")
        self._store = store
        self._namespace = settings.namespace
        self._clients: dict[str, Any] = {}
        """By what keys begin with: a node of a cluster has only some of them."""
        super().__init__(app, **options)
        self.url = store.url

    def as_uri(self, include_password: bool = False) -> str:  # noqa: ARG002 - Celery's signature
        """Where results are, for people."""
        return self._store.name

    @override
    def of_namespace(self, namespace: str) -> Self:
        view = copy.copy(self)
        view._namespace = namespace
        return view

    def _add_global_keyprefix(self) -> None:
        """Put the tag of all namespaces before the names of all keys. Celery calls this once."""
        self._shared = f"{shared_root(self._store.key_prefix)}:"
        self.task_keyprefix = f"{self._shared}{self.task_keyprefix}"
        self.group_keyprefix = f"{self._shared}{self.group_keyprefix}"
        self.chord_keyprefix = f"{self._shared}{self.chord_keyprefix}"

    @override
    def get_key_for_task(self, task_id: Any, key: Any = "") -> bytes:
        """The name of a result: that of a task's job has the tag of the namespace, where it is known.

        Raises:
            ValueError: The id is empty.
        """
        name = super().get_key_for_task(task_id, key)
        if self._namespace is None or not _is_of_task(str(task_id)):
            return name
        root = self._store.keys_of(self._namespace).root
        return f"{root}:".encode() + name.removeprefix(self._shared.encode())

    def get(self, key: bytes) -> bytes | None:
        """A stored value."""
        return self._ask(key, lambda client: client.get(key))

    def mget(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Stored values."""
        found: dict[bytes, bytes | None] = {}
        for root in {_root_of(key) for key in keys}:
            own = [key for key in keys if _root_of(key) == root]
            values = self._ask(own[0], lambda client, own=own: client.mget(own))
            found.update(zip(own, values, strict=True))
        return [found[key] for key in keys]

    def set(self, key: bytes, value: str | bytes) -> None:
        """Store a value, which is tried again for a while when the store is lost.

        Raises:
            RedisError: It was lost for longer.
        """
        until, pause = time.monotonic() + STORING_SECONDS, FIRST_PAUSE_SECONDS
        while True:
            try:
                self._ask(key, lambda client: client.set(key, value, ex=self.expires or None))
            except _LOST as error:
                if time.monotonic() + pause > until:
                    raise
                logger.debug("could not store a result yet: %s", error)
            else:
                return
            time.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - no secret
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def delete(self, key: bytes) -> None:
        """Delete a value."""
        self._ask(key, lambda client: client.delete(key))

    def incr(self, key: bytes) -> int:
        """Count one more, of the jobs of a chord that have ended."""

        def count(client: Any) -> int:
            with client.pipeline() as pipeline:
                pipeline.incr(key)
                if self.chord_expires:
                    pipeline.expire(key, self.chord_expires)
                return pipeline.execute()[0]

        return self._ask(key, count, may_be_repeated=False)

    def expire(self, key: bytes, value: int) -> None:
        """Have a value live so long, in seconds; 0: for ever."""
        self._ask(key, lambda client: client.expire(key, value) if value else client.persist(key))

    @override
    def close(self) -> None:
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    def _ask(self, key: bytes, call: Callable[[Any], Answer], *, may_be_repeated: bool = True) -> Answer:
        client = self._client_of(key)
        return call_blocking(lambda: call(client), may_be_repeated=may_be_repeated)

    def _client_of(self, key: bytes) -> Any:
        root = _root_of(key)
        if (client := self._clients.get(root)) is None:
            client = self._clients[root] = cast(Any, self._store.open_blocking(root))
        return client


def _root_of(key: bytes) -> str:
    """What a key begins with, up to the end of its hash tag."""
    tag, end, _ = key.decode().partition("}")
    return f"{tag}{end}"


def _is_of_task(job_id: str) -> bool:
    """Whether a job has the Celery id of a task's."""
    return is_shortened(job_id) or task_key_from_job_id(job_id) is not None
