"""Recovery: the leases of workers, and the reaper that republishes the jobs of dead ones.

Brokers redeliver by rules of their own: Redis after a visibility timeout of an hour, RabbitMQ when a channel closes or
after half an hour without an acknowledgement. Recovery depends on none of these rules, and a message that is delivered
twice runs once, since a job starts once for each attempt (``start.lua``).

- Each worker renews a lease every ``MCP_CELERY_HEARTBEAT_MS``. A thread of the worker's parent process does it on an
  event loop of its own (``worker/celery/heartbeat.py``), so busy tools cannot make the worker look dead.
- Each job that a worker has received is claimed by (worker, process). The claims of a worker are a set of keys.
- One process among all servers and workers, elected through Redis, runs the reaper. When a worker misses three
  heartbeats, the reaper decides on each claim of that worker, in one script that compares the claim (``recover.lua``):

  ============================================================  ==================================================
  the job                                                       what the reaper does
  ============================================================  ==================================================
  had not started                                               republishes it with the next attempt
  had started, and may be repeated                              the same
  had started, and may have had effects                         fails the task with that reason
  was republished ``MCP_CELERY_MAX_REDELIVERIES`` times         fails the task with that reason
  waits in the broker for a retry                               nothing: it is not lost
  ============================================================  ==================================================

  A tool may be repeated when it has ``readOnlyHint`` or ``idempotentHint``, or is declared with ``acks_late=True``.
- A job is entered in the index ``due`` before it is published, so a reaper that dies or a broker that is down delays
  the job and does not lose it. Workers drop deliveries of an earlier attempt.
- After an outage of the store the reaper waits one lease, so that live workers can renew theirs first. A process that
  has asked the store for that long does not wait when it becomes the reaper.
- A worker that stops in order says so, and the reaper decides at once on the jobs that the worker had started. Jobs
  that it had not started go back to the broker; a job that no worker receives within ten seconds is republished. The
  same happens when a worker loses its connection to the broker: Celery then drops the jobs that it has not started, and
  Redis would keep them for an hour.
- Damage stays with its entry. Indexes are read entry by entry. An entry that cannot be read (no compound key, not
  UTF-8, a record of another type or with fields that cannot be decoded) is removed from the index, and one log line
  names the key and the entry (``store/unreadable.py``). An index of another type is deleted, since nothing could be
  added to it. Neither counts as an outage of the store.
- Expiry has an index too: when a task outlives its ttl, the reaper revokes its job and deletes its stored results.
  Redis has expired the record by then.
"""
