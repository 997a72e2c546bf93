"""Redis as a storage of tasks."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Final

import redis
from redis.exceptions import NoPermissionError
from typing_extensions import override

from mcp_celery.common.cluster_url import has_hash_tag
from mcp_celery.common.outage import Outage
from mcp_celery.common.redis_hello import is_in_cluster_mode
from mcp_celery.common.redis_url import is_same_database, parse
from mcp_celery.engine.backend import Backend, BackendOptions, OpenBackend, Unusable
from mcp_celery.store.bus import SILENCE_SECONDS, RedisTaskBus
from mcp_celery.store.client import StoreClient, connect
from mcp_celery.store.cluster import ClusterView, slot_of, view_of
from mcp_celery.store.connection import IDLE_SECONDS, connect_blocking
from mcp_celery.store.exposed import RedisExposed
from mcp_celery.store.failures import described, is_refusal
from mcp_celery.store.keys import RedisKeys
from mcp_celery.store.memory import StoreMemory
from mcp_celery.store.named import NamedKeys
from mcp_celery.store.queued import RedisQueuedJobs
from mcp_celery.store.records import RedisJobLedger, RedisTaskStore
from mcp_celery.store.recovery import RedisRecovery
from mcp_celery.store.sentinel import SentinelView, views_of
from mcp_celery.store.webhooks import RedisWebhooks

logger = logging.getLogger(__name__)

IN_CLUSTER_MODE: Final = (
    "it is in cluster mode, and keys have no hash tags: name some of its nodes (redis+cluster://HOST:PORT,HOST:PORT); "
    "or, where it has one shard, set MCP_CELERY_HASH_TAGS=true"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisBackend(Backend):
    """Redis, or a server that speaks its protocol. Fulfils :class:`mcp_celery.engine.Backend`.

    Attributes:
        url: In redis-py's form, of Sentinels, or of a Redis Cluster.
        key_prefix: First part of every key.
        timeout_seconds: How long the server may be silent upon a command.
        max_connections: How many connections a process opens; calls wait when all are busy.
        max_memory_percent: How much of the server's ``maxmemory`` may be in use before new tasks are refused.
        credentials: Gives user and password for each connection. None: those of the URL.
        outage: Whether the server is lost, as :meth:`unusable` and what :meth:`open` opens have noticed.
        idle_seconds: After which time without a command a connection is replaced.
        hash_tags: Whether all keys of a namespace have one hash tag. On a Redis Cluster they always have.
        named: The keys that records name: a worker's store learns them when a job starts, its ledger needs them then.
    """

    url: str
    key_prefix: str
    timeout_seconds: float
    max_connections: int
    max_memory_percent: int
    credentials: redis.CredentialProvider | None = None
    idle_seconds: float = IDLE_SECONDS
    hash_tags: bool = False
    outage: Outage = field(
        default_factory=lambda: Outage("the task store (MCP_CELERY_REDIS_URL)", logger), compare=False, repr=False
    )
    named: NamedKeys = field(default_factory=NamedKeys, compare=False, repr=False)

    @property
    @override
    def in_process(self) -> bool:
        return False

    @property
    def is_cluster(self) -> bool:
        """Whether it is a Redis Cluster."""
        return parse(self.url).cluster is not None

    @property
    @override
    def name(self) -> str:
        where = parse(self.url)
        return f"Redis {where.place}, database {where.db}, key prefix {self.key_prefix!r}"

    @override
    def holds_results_at(self, url: str | None, key: str, namespace: str) -> bool:
        return url is not None and is_same_database(url, self.url) and self._may_have_beside_records(key, namespace)

    async def sentinels(self) -> list[SentinelView]:
        """The answer of each Sentinel of the URL; empty where the URL names none."""
        return await views_of(self.url, timeout_seconds=self.timeout_seconds)

    async def cluster_view(self) -> ClusterView:
        """What the nodes say of the Redis Cluster of the URL."""
        return await view_of(parse(self.url), timeout_seconds=self.timeout_seconds, credentials=self.credentials)

    @override
    def holds_queues_at(self, url: str, prefix: str, namespace: str) -> bool:
        return self.holds_results_at(url, prefix, namespace) and parse(url).username == parse(self.url).username

    def _may_have_beside_records(self, key: str, namespace: str) -> bool:
        """Whether one script may have a key and those of a namespace. In a cluster they need one tag."""
        if not self._has_tags:
            return True
        return has_hash_tag(key) and slot_of(key) == slot_of(self.keys_of(namespace).root)

    def open_blocking(self, key: str) -> redis.Redis:
        """A blocking client, of all that has the slot of a key; the caller closes it.

        Args:
            key: Any key that it is for, or what they begin with.
        """
        return connect_blocking(
            self.url,
            timeout_seconds=self.timeout_seconds,
            max_connections=self.max_connections,
            credentials=self.credentials,
            idle_seconds=self.idle_seconds,
            key=key,
        )

    @override
    def unusable(self) -> Unusable | None:
        try:
            with connect_blocking(
                self.url,
                timeout_seconds=self.timeout_seconds,
                max_connections=1,
                credentials=self.credentials,
                retries=0,
            ) as client:
                client.ping()
                is_misfit = not self._has_tags and _is_in_cluster_mode(client)
        except NoPermissionError:
            is_misfit = False  # it answers, and has accepted the password
        except (redis.RedisError, OSError) as error:
            found = Unusable(self.outage.service, type(error).__name__, described(error), is_refusal(error))
            if not found.is_refusal:
                self.outage.began(found.kind, found.reason)
            return found
        self.outage.ended()
        if is_misfit:
            return Unusable(self.outage.service, "ClusterMode", IN_CLUSTER_MODE, is_refusal=False, is_misfit=True)
        return None

    @override
    def open(self, options: BackendOptions) -> OpenBackend:
        if not parse(self.url).checks_certificates:
            logger.warning("MCP_CELERY_REDIS_URL has ssl_cert_reqs=none: any server can pass for this Redis")
        store = self._open_store(options, self.outage)
        return OpenBackend(
            store, self.open_bus(options), RedisRecovery(store), RedisExposed(store), RedisQueuedJobs(store)
        )

    @override
    def open_store(self, options: BackendOptions) -> RedisTaskStore:
        return self._open_store(options, None)

    def _open_store(self, options: BackendOptions, outage: Outage | None) -> RedisTaskStore:
        results = options.results
        store = RedisTaskStore(
            self._connect(options),
            self._keys(options),
            result_key=None if results is None else results.key,
            decode_result=None if results is None else results.decode,
            snapshots=options.snapshots,
            memory=StoreMemory(self.max_memory_percent),
            observers=options.observers,
            outage=outage,
        )
        store.named = self.named
        return store

    @override
    def open_bus(self, options: BackendOptions) -> RedisTaskBus:
        client = self._connect(options, listens=True)
        return RedisTaskBus(
            client,
            self._keys(options),
            timeout_seconds=self.timeout_seconds,
            silence_seconds=min(SILENCE_SECONDS, self.idle_seconds),
        )

    @override
    def open_outbox(self, options: BackendOptions) -> RedisWebhooks:
        return RedisWebhooks(self._open_store(options, None))

    @override
    def open_ledger(self, options: BackendOptions) -> RedisJobLedger:
        ledger = RedisJobLedger(
            self.url,
            self._keys(options),
            timeout_seconds=self.timeout_seconds,
            max_connections=self.max_connections,
            snapshots=options.snapshots,
            observers=options.observers,
            credentials=self.credentials,
            idle_seconds=self.idle_seconds,
        )
        ledger.named = self.named
        return ledger

    def keys_of(self, namespace: str) -> RedisKeys:
        """The names of the keys of a namespace."""
        return RedisKeys(self.key_prefix, namespace, is_tagged=self._has_tags, is_sharded=self.is_cluster)

    @property
    def _has_tags(self) -> bool:
        return self.hash_tags or self.is_cluster

    def _keys(self, options: BackendOptions) -> RedisKeys:
        return self.keys_of(options.namespace)

    def _connect(self, options: BackendOptions, *, listens: bool = False) -> StoreClient:
        return connect(
            self.url,
            max_connections=self.max_connections,
            timeout_seconds=self.timeout_seconds,
            credentials=self.credentials,
            listens=listens,
            idle_seconds=self.idle_seconds,
            key=self._keys(options).root,
        )


def _is_in_cluster_mode(client: redis.Redis) -> bool:
    """Ask a server whether it is in cluster mode. False where it does not say."""
    try:
        return is_in_cluster_mode(client.execute_command("HELLO"))
    except redis.ResponseError:
        return False  # it is old, or a proxy
