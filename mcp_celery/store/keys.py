"""Every Redis key. The one place where they are spelled.

====================================== ================================ =========================================
Redis key                              holds                            lifetime
====================================== ================================ =========================================
``{prefix}:{ns}:task:auth:{scope}:ID`` hash: the task record            the task's ttl, set when it is created
``{prefix}:{ns}:task:anon:ID``         the same for anonymous callers   the same
``…:ID:snapshot``                      string: the caller's context     the same
``…:ID:questions``                     hash: what the caller is asked   the same
``…:ID:answers``                       hash: what it answered, until    the same
                                       a job has read it
``…:ID:deleted``                       string: the task was taken back  a minute
``…:ID:events``                        pub/sub channel of the task      none (channels hold nothing)
``{prefix}:{ns}:doctor``               string: tried by ``doctor``      a minute
``{prefix}:{ns}:idle``                 pub/sub channel without          the same
                                       messages
``{prefix}:{ns}:job:JOBID``            string: full key of a shortened  the same as the record's
                                       Celery id
``{prefix}:{ns}:list:auth:…``          sorted set: positions of the     that of its longest-lived task
``{prefix}:{ns}:list:session:DIGEST``  tasks that an owner may list
``{prefix}:{ns}:open:DIGEST``          sorted set: open tasks of one    the same
``{prefix}:{ns}:stored:DIGEST``        sorted set: tasks of one         the same and a second
``{prefix}:{ns}:stored:DIGEST:bytes``  hash: the bytes kept of each     the same and a second
``{prefix}:{ns}:failed:DIGEST``        string: failed look-ups of one   a minute from the first
``{prefix}:{ns}:created:DIGEST``       sorted set: the last tasks of one the window of the rate
``{prefix}:{ns}:running:KIND~~DIGEST`` sorted set: tasks that have the  that of its longest-lived task
                                       places of a limit on jobs
``…:running:KIND~~DIGEST:waiting``     sorted set: tasks that wait for  the same
                                       one of these places
``{prefix}:{ns}:running:window``       sorted set: tasks whose jobs the the same
                                       broker may have, in turns
``{prefix}:{ns}:turns:DIGEST``         sorted set: tasks of a caller    the same
                                       that wait for its turn
``{prefix}:{ns}:once:DIGEST``          hash: the task of an idempotency the same as the record's
                                       key
``{prefix}:{ns}:expiry``               sorted set: tasks by their end,  31 days from its last entry, as are the next
                                       for the reaper
``{prefix}:{ns}:ended``                sorted set: the same of tasks
                                       that ended beside their results
``{prefix}:{ns}:remembered``           hash: what the reaper must know
                                       of tasks that have expired
``{prefix}:{ns}:workers``              sorted set: heartbeats
``{prefix}:{ns}:components:WORKER``    hash: components whose jobs it   its lease, from its last heartbeat
                                       takes, by fingerprint
``{prefix}:{ns}:claims:WORKER``        set: tasks whose job it has
``{prefix}:{ns}:unread``               sorted set: workers that may
                                       have messages not read yet
``{prefix}:{ns}:due``                  sorted set: jobs to publish
``{prefix}:{ns}:unclaimed``            sorted set: jobs that no worker
                                       has received
``{prefix}:{ns}:waiting``              sorted set: tasks that wait for
                                       a place or their caller's turn
``{prefix}:{ns}:turns``                sorted set: callers with tasks
                                       that wait, by their turns
``{prefix}:{ns}:slots``                hash: jobs that each worker can
                                       run at a time, and their sum
``{prefix}:{ns}:exposed``              sorted set: looks at exposed jobs
``{prefix}:{ns}:attended``             sorted set: tasks that their
                                       owners may abandon, by when
``{prefix}:{ns}:webhooks``             sorted set: webhooks to deliver
``{prefix}:{ns}:webhooks:ID``          hash: what a webhook reports     four days
``{prefix}:{ns}:silent:DIGEST``        string: a receiver of webhooks   half a minute
                                       does not answer
``{prefix}:{ns}:mark``                 string: identifies this store    31 days from when a process last read it
``{prefix}:{ns}:reaper``               string: which process reaps      three heartbeats
====================================== ================================ =========================================

With hash tags ``{prefix}:{ns}`` stands in braces: a Redis Cluster keeps everything of a namespace on one shard then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, get_args

from mcp_celery.common.cluster_url import has_hash_tag
from mcp_celery.engine import PlaceKind
from mcp_celery.keys import digest, quote_segment, task_redis_prefix

_KINDS: Final[tuple[PlaceKind, ...]] = get_args(PlaceKind)
DELETED_LIFETIME_MS: Final = 60_000
"""For so long a creation that was taken back may still arrive, over a connection that was held up."""
INDEX_LIFETIME_MS: Final = 31 * 86_400_000
"""Indices live this long after their last entry was made: a day more than the longest life of a task."""


@dataclass(frozen=True, slots=True)
class RedisKeys:
    """The Redis keys of one server's tasks.

    Args:
        prefix: ``MCP_CELERY_KEY_PREFIX``.
        namespace: ``MCP_CELERY_NAMESPACE``, so that several servers can share one Redis.
        is_tagged: Whether all keys have one hash tag: that of the prefix, or else prefix and namespace.
        is_sharded: Whether channels are those of sharded pub/sub, where the server has it.
    """

    prefix: str
    namespace: str
    is_tagged: bool = False
    is_sharded: bool = False

    @property
    def _root(self) -> str:
        return self.root_of(self.namespace)

    @property
    def root(self) -> str:
        """What all keys begin with."""
        return self._root

    def root_of(self, namespace: str) -> str:
        """What all keys of another namespace begin with, or of a pattern of namespaces."""
        root = f"{self.prefix}:{namespace}"
        return f"{{{root}}}" if self.is_tagged and not has_hash_tag(self.prefix) else root

    def record(self, task_scope: str | None, task_id: str) -> str:
        """Hash: the task's record."""
        return f"{task_redis_prefix(task_scope, prefix=self._root)}:{task_id}"

    def snapshot(self, task_scope: str | None, task_id: str) -> str:
        """String: the caller's context for the worker."""
        return self.record(task_scope, task_id) + ":snapshot"

    def deleted(self, task_scope: str | None, task_id: str) -> str:
        """String: the task was taken back, and its creation may still be on its way."""
        return self.record(task_scope, task_id) + ":deleted"

    def channel(self, task_scope: str | None, task_id: str) -> str:
        """Pub/sub channel on which each change of the task is announced."""
        return self.record(task_scope, task_id) + ":events"

    @property
    def idle_channel(self) -> str:
        """Pub/sub channel without messages. It keeps a connection in pub/sub mode that follows no task."""
        return f"{self._root}:idle"

    @property
    def doctor(self) -> str:
        """String: what ``mcp-celery doctor`` writes and deletes, to see whether its user may."""
        return f"{self._root}:doctor"

    @property
    def never(self) -> str:
        """A key that never exists."""
        return f"{self._root}:never"

    @property
    def all_channels(self) -> str:
        """The prefix of every channel."""
        return f"{self._root}:"

    def questions(self, task_scope: str | None, task_id: str) -> str:
        """Hash: what the task's caller is asked, by the question's key."""
        return self.record(task_scope, task_id) + ":questions"

    def answers(self, task_scope: str | None, task_id: str) -> str:
        """Hash: what the caller answered and no job has read yet, by the question's key."""
        return self.record(task_scope, task_id) + ":answers"

    def records(self, task_scope: str | None) -> str:
        """The prefix of the keys of a scope's records; the task id follows."""
        return self.record(task_scope, "")

    @property
    def all_records(self) -> str:
        """The prefix of the keys of all records; the first parts of the compound key follow, up to the task id."""
        return f"{self._root}:task:"

    def index(self, task_scope: str | None, issuer: str | None, session: str | None) -> str | None:
        """Sorted set: the tasks that their owner may list. None where the task cannot be listed.

        Args:
            task_scope: The owner's scope, None for an anonymous one.
            issuer: Issuer of the owner's token.
            session: Digest of an anonymous owner's session, None where there is none.
        """
        prefix = f"{self._root}:list"
        if task_scope is not None:
            return f"{prefix}:auth:{quote_segment(task_scope)}:{quote_segment(issuer or '')}"
        return None if session is None else f"{prefix}:session:{quote_segment(session)}"

    def counted(self, what: str, whose: str) -> str:
        """Sorted sets: compound keys of the open tasks that a counter limits (``open``: those of a requestor), and of
        those of which bytes are ``stored``, by their end; the bytes are in a hash with ``:bytes`` behind its name.
        Sorted set: compound keys of the tasks ``created`` in the window of a rate, by when. String: a requestor's
        ``failed`` look-ups.
        """
        return f"{self._root}:{what}:{digest(whose)}"

    def once(self, name: str) -> str:
        """Hash: the task that a request with an idempotency key has made, with a digest of the request; while its first
        job is being published since when, and the task id of the request that publishes it.

        Args:
            name: Digest of the key and of whose it is.
        """
        return f"{self._root}:once:{name}"

    def job_alias(self, job_id: str) -> str:
        """String: the full compound key of a shortened Celery id, the same for every leg."""
        return f"{self._root}:job:{job_id.partition('!')[0]}"

    @property
    def expiry(self) -> str:
        """Sorted set: compound keys of the tasks that the reaper looks at when they expire, by that time. Index, see
        :data:`INDEX_LIFETIME_MS`.
        """
        return f"{self._root}:expiry"

    @property
    def ended(self) -> str:
        """Sorted set: compound keys of the tasks that the reaper need not look at when they expire, by that time: their
        only job has ended, and its result ends with the record. Index.
        """
        return f"{self._root}:ended"

    @property
    def remembered(self) -> str:
        """Hash: what the reaper must know of each task once its record has expired, by the compound key. Index."""
        return f"{self._root}:remembered"

    @property
    def workers(self) -> str:
        """Sorted set: the workers, by the time until which their last heartbeat holds. Index."""
        return f"{self._root}:workers"

    def components(self, worker: str) -> str:
        """Hash: the components whose jobs a worker takes, by fingerprint. It ends with the worker's lease."""
        return f"{self._root}:components:{worker}"

    def claims(self, worker: str) -> str:
        """Set: compound keys of the open tasks whose job a worker has. Index."""
        return f"{self._root}:claims:{worker}"

    @property
    def unread(self) -> str:
        """Sorted set: workers that may have messages which they have not read, by since when. Index."""
        return f"{self._root}:unread"

    @property
    def unclaimed(self) -> str:
        """Sorted set: compound keys of the tasks whose job no worker has received, by since when. Index."""
        return f"{self._root}:unclaimed"

    @property
    def due(self) -> str:
        """Sorted set: compound keys of the tasks whose next job is still to be published, by since when. Index."""
        return f"{self._root}:due"

    def running(self, kind: PlaceKind, whose: str) -> str:
        """Sorted set: compound keys of the tasks that have the places of a limit on running jobs, by their end. With
        ``:waiting`` behind its name: those of the tasks that wait for one, by when they were created.

        Args:
            kind: What is limited.
            whose: Which jobs count together.
        """
        return f"{self._root}:running:{kind}{digest(whose)}"

    def kind_of_limit(self, name: str) -> PlaceKind | None:
        """What the limit counts that :meth:`running` has named so; None where it has named none so."""
        if name.startswith(f"{self.turns}:"):
            return "turn"
        kind = name.removeprefix(f"{self._root}:running:").partition("~~")[0]
        return next((one for one in _KINDS if one == kind), None)

    @property
    def window(self) -> str:
        """Sorted set: compound keys of the tasks whose jobs the broker has, where callers take turns, by their end."""
        return f"{self._root}:running:window"

    @property
    def turns(self) -> str:
        """Sorted set: the lines of callers, in the order in which they have their turns. Index."""
        return f"{self._root}:turns"

    def line(self, whose: str) -> str:
        """Sorted set: compound keys of a caller's tasks that wait for its turn, by when they were created.

        Args:
            whose: The caller.
        """
        return f"{self.turns}:{digest(whose)}"

    def line_of(self, waits_in: str) -> str:
        """The sorted set of the tasks that wait for what a record's field ``waits_in`` names."""
        return waits_in if waits_in.startswith(f"{self.turns}:") else f"{waits_in}:waiting"

    @property
    def slots(self) -> str:
        """Hash: how many jobs each worker can run at a time, and with an empty name the sum of all. Index."""
        return f"{self._root}:slots"

    @property
    def waiting(self) -> str:
        """Sorted set: compound keys of the tasks that wait for a place, or for their caller's turn, by when the reaper
        looked at them. Index.
        """
        return f"{self._root}:waiting"

    @property
    def exposed(self) -> str:
        """Sorted set: compound keys of open tasks of exposed jobs, by when to look at their results. Index."""
        return f"{self._root}:exposed"

    @property
    def attended(self) -> str:
        """Sorted set: compound keys of tasks that their owners may abandon, by when they will have. Index."""
        return f"{self._root}:attended"

    @property
    def webhooks(self) -> str:
        """Sorted set: ids of webhooks that no receiver has taken, by when they are due. Index."""
        return f"{self._root}:webhooks"

    def webhook(self, webhook_id: str) -> str:
        """Hash: what a webhook tells."""
        return f"{self.webhooks}:{webhook_id}"

    def silent(self, receiver: str) -> str:
        """String: a receiver of webhooks does not answer, and its webhooks wait until this key ends."""
        return f"{self._root}:silent:{receiver}"

    @property
    def reaper(self) -> str:
        """String: which process reaps, until its next sweep is overdue."""
        return f"{self._root}:reaper"

    @property
    def mark(self) -> str:
        """String: identifies this store (``engine/store_mark.py``). Index."""
        return f"{self._root}:mark"
