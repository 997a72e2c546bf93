"""Reading Celery's result backend, which holds what jobs returned."""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from math import inf
from pickle import UnpicklingError
from time import monotonic
from typing import Any, Final, TypeVar, cast

import redis
from celery import Celery
from celery.backends.base import KeyValueStoreBackend
from celery.backends.cache import CacheBackend
from celery.backends.redis import RedisBackend, SentinelBackend
from celery.exceptions import SecurityError
from celery.states import PENDING, READY_STATES
from kombu.exceptions import SerializationError, SerializerNotInstalled
from redis.exceptions import ClusterCrossSlotError

from mcp_celery.broker.blocking_calls import BlockingCalls
from mcp_celery.broker.own_results import OwnResults
from mcp_celery.broker.sentinel_results import SentinelResults
from mcp_celery.common.django_connections import fresh_connections
from mcp_celery.common.sentinel_url import MASTER_NAME
from mcp_celery.engine import UNREADABLE, StoredResult, Unusable

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

READERS: Final = 8
"""How many results are read at a time."""
IDLE_SECONDS: Final = 60.0
"""After this time without a read connections are replaced, by default."""
_OF_REDIS: Final = (RedisBackend, SentinelBackend, SentinelResults)
"""The backends that are replaced by one of our own. A backend that derives from them may do otherwise."""
_READ_TOGETHER: Final = (RedisBackend, CacheBackend, OwnResults)
"""The backends that can be asked for many results at once."""
FORGET_SECONDS: Final = 0.1
"""How long forgetting one of many results may take."""
_UNREADABLE: Final = (SerializationError, SerializerNotInstalled, SecurityError, UnpicklingError, ImportError)
"""What backends raise of a result that they hold and cannot give."""


def refusing_results(app: Celery, service: str, *, timeout_seconds: float) -> Unusable | None:
    """Ask an app's result backend whether it refuses user or password. Only one Redis server is asked.

    Args:
        app: Whose result backend it is.
        service: The result backend, with the setting that names it.
        timeout_seconds: How long it may take to connect, and to answer.

    Returns:
        Why it cannot be used; None where it refuses nothing, does not answer, or is another kind.
    """
    if type(app.backend) is not RedisBackend:
        return None
    backend: Any = app.backend
    # Not Celery's own client, whose timeouts are those of its configuration: two minutes, or none.
    timeouts = {"socket_connect_timeout": timeout_seconds, "socket_timeout": timeout_seconds}
    pool = backend.ConnectionPool(**{**backend.connparams, **timeouts})
    client = redis.Redis(connection_pool=pool)
    try:
        client.ping()
    except redis.AuthenticationError as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        return Unusable(service, type(error).__name__, reason, is_refusal=True)
    except (redis.RedisError, OSError):
        return None
    finally:
        client.close()
        pool.disconnect()
    return None


class CeleryResults:
    """Fulfils :class:`mcp_celery.engine.TaskResults` over whatever result backend the app has.

    Args:
        app: The Celery app.
        namespace: Whose results they are.
        timeout_seconds: How long a read may take.
        idle_seconds: After which time without a read the connections to a Redis are replaced before the next.
    """

    def __init__(
        self, app: Celery, *, namespace: str = "", timeout_seconds: float, idle_seconds: float = IDLE_SECONDS
    ) -> None:
        self._app = app
        self._namespace = namespace
        self._timeout_seconds = timeout_seconds
        self._idle_seconds = idle_seconds
        self._used_at = monotonic()
        self._redis: Any = None
        self._own: OwnResults | None = None
        # Not the event loop's own threads: a backend that hangs would keep those from all else that needs them.
        self._calls = BlockingCalls(
            "the result backend", "mcp-celery-results", threads=READERS, timeout_seconds=timeout_seconds
        )

    @property
    def _backend(self) -> Any:
        if self._own is not None:
            return self._own
        backend: Any = self._app.backend
        if isinstance(backend, OwnResults):
            self._own = backend.of_namespace(self._namespace)
            return self._own
        return self._redis_of(backend) if type(backend) in _OF_REDIS else backend

    def _redis_of(self, theirs: Any) -> Any:
        """A backend of our own in place of the app's, whose connections may hang for two minutes.

        The app's settings hold for it, except for those of waiting.
        """
        if self._redis is None:
            own: Any = type(theirs)(app=self._app, url=theirs.url)
            limits = {"socket_timeout": self._timeout_seconds, "socket_connect_timeout": self._timeout_seconds}
            own.connparams |= {**limits, "retry_on_timeout": False}
            self._redis = own
        return self._redis

    def _replace_idle(self) -> None:
        """Close connections to a Redis that have been idle for long, or on which it was silent."""
        now = monotonic()
        if self._redis is not None and now - self._used_at > self._idle_seconds:
            self._redis.client.connection_pool.disconnect(inuse_connections=False)
        self._used_at = now

    @property
    def url(self) -> str | None:
        """Where the result backend is, None where it does not say. Celery names the master of Sentinels apart."""
        backend = self._backend
        url: str | None = getattr(backend, "url", None)
        if url is None or not issubclass(type(backend), SentinelBackend):
            return url
        name = backend._transport_options.get(MASTER_NAME)
        pieces = (f"{piece}{'&' if '?' in piece else '?'}{MASTER_NAME}={name}" for piece in url.split(";"))
        return ";".join(pieces)

    def key(self, job_id: str) -> str:
        """Where a Redis backend keeps a job's result."""
        key: bytes | str = self._backend.get_key_for_task(job_id)
        return key.decode() if isinstance(key, bytes) else key

    @property
    def any_key(self) -> str:
        """The name of some result; empty where results have no names of Redis."""
        return self.key("anon:any:tool:any") if isinstance(self._backend, KeyValueStoreBackend) else ""

    def decode(self, payload: bytes) -> StoredResult:
        """Read what the backend stored, in the serializer and compression that the app is set to.

        Of a job that still runs the state alone counts where the rest cannot be read.
        """
        try:
            return _stored(self._backend.decode(payload))
        except Exception as error:  # noqa: BLE001 - what is unpickled may raise anything
            return _without_value(payload, error)

    async def read(self, job_id: str) -> StoredResult | None:
        """The job's stored result, read off the event loop. None: none yet, or the backend does not answer."""
        try:
            return await self._calls.call(self._with_connections(lambda: self._read(job_id)))
        except Exception as error:  # noqa: BLE001 - backends raise their drivers' own errors, which have no common root
            self._note_failure(error)
            return None

    async def read_many(self, job_ids: Sequence[str]) -> Mapping[str, StoredResult | None]:
        """The jobs' stored results, in one request where the backend can; else it is asked for as long as it answers.

        Returns:
            By Celery id, None for each job that has none; what the backend did not give is left out.
        """
        read = self._read_together if isinstance(self._backend, _READ_TOGETHER) else self._read_each
        found: dict[str, StoredResult | None] = {}
        unread = deque(job_ids)
        try:
            while unread:
                await self._calls.call(self._with_connections(lambda: read(unread, found)))
        except Exception as error:  # noqa: BLE001 - as above
            self._note_failure(error)
        return found.copy()

    def _note_failure(self, error: Exception) -> None:
        logger.warning("the result backend did not answer: %s", type(error).__name__)
        self._used_at = -inf  # what is idle by now may be as dead

    async def forget(self, job_ids: Sequence[str]) -> None:
        """Forget the stored results of jobs, off the event loop; what fails to be forgotten lives its own time."""
        try:
            await self._calls.call(
                self._with_connections(lambda: self._forget(job_ids)), longer_seconds=FORGET_SECONDS * len(job_ids)
            )
        except Exception as error:  # noqa: BLE001 - as above
            logger.warning(
                "could not delete all of %d results from the result backend: %s", len(job_ids), type(error).__name__
            )

    def _with_connections(self, call: Callable[[], Answer]) -> Callable[[], Answer]:
        """The same call of the backend, on connections of its thread that are good."""

        def made() -> Answer:
            with fresh_connections(self._backend):
                return call()

        return made

    def _forget(self, job_ids: Sequence[str]) -> None:
        """Forget results one by one; one that cannot be forgotten keeps no other.

        Raises:
            Exception: One was not; it is its driver's.
        """
        until = monotonic() + self._timeout_seconds / 2
        failed: list[Exception] = []
        self._replace_idle()
        for job_id in job_ids:
            try:
                self._backend.forget(job_id)
            except FileNotFoundError:  # of `file://`: it is forgotten
                continue
            except Exception as error:  # noqa: BLE001 - as above
                failed.append(error)
                if monotonic() > until:
                    break
        if failed:
            raise failed[-1]

    def close(self) -> None:
        """Stop reading; what is being read is not waited for."""
        self._calls.abandon()
        if self._redis is not None:
            self._redis.client.connection_pool.disconnect()
        if self._own is not None:
            self._own.close()

    def _read(self, job_id: str) -> StoredResult | None:
        self._replace_idle()
        backend = self._backend
        if self._app.conf.task_always_eager:
            # Celery stores no results then, and warns where one is read. Those of tasks are stored.
            return _stored(backend._get_task_meta_for(job_id))
        return _stored(backend.get_task_meta(job_id, cache=False))

    def _payload(self, job_id: str) -> Any:
        """What the backend has stored of a job, as it is; None where it gives no text."""
        backend = self._backend
        return backend.get(backend.get_key_for_task(job_id)) if isinstance(backend, KeyValueStoreBackend) else None

    def _read_together(self, unread: deque[str], found: dict[str, StoredResult | None]) -> None:
        """Read results in one request, where the backend takes it.

        Raises:
            Exception: The backend gave none; it is its driver's.
        """
        self._replace_idle()
        keys = {job_id: self._backend.get_key_for_task(job_id) for job_id in unread}
        try:
            given: Any = self._backend.mget(list(keys.values()))
        except ClusterCrossSlotError:  # a Redis in cluster mode, whose names of results have no hash tag
            self._read_each(unread, found)
            return
        # Memcached's clients give what there is, by key; Redis gives values in the order of the keys.
        payloads = [given.get(key) for key in keys.values()] if hasattr(given, "items") else given
        for job_id, payload in zip(keys, payloads, strict=True):
            found[job_id] = _unless_pending(self.decode(payload)) if payload else None
        unread.clear()

    def _read_each(self, unread: deque[str], found: dict[str, StoredResult | None]) -> None:
        """Read results one by one, and return well before it would be given up, unless the backend hangs.

        Raises:
            Exception: The backend gave none; it is its driver's.
        """
        until = monotonic() + self._timeout_seconds / 2
        had, failed = len(found), None
        while unread and monotonic() < until:
            job_id = unread.popleft()
            try:
                found[job_id] = _unless_pending(self._read(job_id))
            except Exception as error:  # noqa: BLE001 - as above
                if _is_of_the_result(error):
                    is_text = isinstance(error, SerializationError)
                    found[job_id] = _without_value(self._payload(job_id) if is_text else None, error)
                else:
                    failed = error  # and the next may still be read
        if failed is not None:
            if len(found) == had:
                raise failed
            logger.warning("could not read a result from the result backend: %s", type(failed).__name__)


def _unless_pending(stored: StoredResult | None) -> StoredResult | None:
    """Backends that are asked for an unknown job say that it is pending."""
    return None if stored is None or stored.state == PENDING else stored


def _is_of_the_result(error: Exception) -> bool:
    """Whether a backend holds a result and cannot give it. All other errors may be those of a lost connection."""
    return isinstance(error, _UNREADABLE) or (
        # pickle's, of a class that the server does not have
        isinstance(error, AttributeError) and str(error).startswith("Can't get attribute")
    )


def _without_value(payload: Any, error: Exception) -> StoredResult:
    """What is known of a stored result whose value cannot be decoded: the state, of a job that still runs."""
    logger.error("a stored result cannot be decoded: %s", type(error).__name__)
    state = _state_in(payload)
    return UNREADABLE if state is None or state in READY_STATES else StoredResult(state, None)


def _state_in(payload: Any) -> str | None:
    """The state in what a backend stored as JSON, whatever the rest is; None where it has none, or is no JSON."""
    try:
        stored: Any = json.loads(payload)
    except (TypeError, ValueError, RecursionError):
        return None
    state = cast("dict[str, object]", stored).get("status") if isinstance(stored, dict) else None
    return state if isinstance(state, str) else None


def _stored(meta: dict[str, Any]) -> StoredResult:
    value = meta["result"]
    if isinstance(value, BaseException):
        value = {"exc_type": type(value).__name__, "exc_message": list(value.args)}
    return StoredResult(str(meta["status"]), value)


class NoResults:
    """Stands for :class:`CeleryResults` where the task store keeps every result itself, and forgets it itself."""

    async def read(self, job_id: str) -> StoredResult | None:  # noqa: ARG002 - there is none
        """No result."""
        return None

    async def read_many(self, job_ids: Sequence[str]) -> Mapping[str, StoredResult | None]:
        """No results."""
        return dict.fromkeys(job_ids)

    async def forget(self, job_ids: Sequence[str]) -> None:
        """Forget nothing."""

    def close(self) -> None:
        """Close nothing."""
