"""Every field of a task's hash in Redis: what it holds, who writes it, and when it is reset.

A field that is not in :data:`FIELDS` exists nowhere: a test compares the scripts and the codec with this table. The
lists of fields that scripts delete are made from it (:data:`LUA`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["text", "integer", "time", "flag", "json"]
"""``time``: ms since the epoch, as a decimal integer. ``flag``: ``1``, or the field is absent."""
Reset = Literal["leg", "attempt", "release"]
"""The smallest step that deletes the field. ``release``: a worker gives the job back. ``attempt``: the job is published
again, which releases it too. ``leg``: the task's next job takes over, which is also the next attempt.
"""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of the hash.

    Attributes:
        name: Its name in Redis.
        kind: How its value is written. An absent value is an absent field.
        meaning: What it says.
        writers: The scripts and shared Lua functions that write it, by the name of their file; ``change`` stands for
            :func:`mcp_celery.store.codec.encode_change`, whose fields ``transition``, ``finish`` and ``recover`` set.
        reset: The smallest step that deletes it; None: it stays for the life of the record.
        fixed: Whether it never changes. With keys it is signed, and sealed with the task's request: a record in which
            it was changed is not read, and no job runs for it. A release that does not know the field refuses
            records that have it.
    """

    name: str
    kind: Kind
    meaning: str
    writers: tuple[str, ...] = ("create",)
    reset: Reset | None = None
    fixed: bool = False


FIELDS: Final = (
    Field("format", "integer", "number of the record's format; absent: 1 (mcp_celery.common.formats)", fixed=True),
    # Which task this is, and whose: these never change.
    Field("key", "text", "compound key", fixed=True),
    Field("task_id", "text", "the id that the client holds", fixed=True),
    Field("scope", "text", "the owner's scope; absent: an anonymous caller", fixed=True),
    Field("issuer", "text", "issuer of the token that created the task", fixed=True),
    Field("session", "text", "digest of the session that lists the task, for an anonymous caller", fixed=True),
    Field("type", "text", "tool, prompt or resource", fixed=True),
    Field("component", "text", "the tool's or prompt's name, or the resource's URI", fixed=True),
    Field("declared_as", "text", "the URI template that the component is declared as, where it differs", fixed=True),
    Field("fingerprint", "text", "of the server's version of the component; absent: any version may run", fixed=True),
    Field("options", "json", "what the component declares for the messages of its jobs; absent: nothing", fixed=True),
    Field("job_name", "text", "Celery name of the task's jobs; absent: the component's own", fixed=True),
    Field("work", "json", "of existing Celery jobs: [number of jobs, of gathered results, terminate]", fixed=True),
    Field("idempotent", "flag", "whether a body that has started may start again when its worker dies", fixed=True),
    Field("hidden", "integer", "what its Celery ids do not show (mcp_celery.keys.Hidden)", fixed=True),
    Field("unlisted", "flag", "whether the owner's list leaves the task out", fixed=True),
    Field("traceparent", "text", "the creating request's place in a distributed trace; absent: none"),
    Field("signature", "text", "with keys: of the fixed fields, for this server"),
    # Time.
    Field("created_at_ms", "time", "when the task was created", fixed=True),
    Field("updated_at_ms", "time", "the last change of the state or its message", ("create", "common")),
    Field("ttl_ms", "integer", "granted time to live in ms, from creation", ("create", "questions")),
    Field("max_ttl_ms", "integer", "with keys: the most that ttl_ms may grow to; absent: any", fixed=True),
    Field("poll_interval_ms", "integer", "how often a client without push should ask", fixed=True),
    Field("revision", "integer", "the number of changes, from 1", ("create", "common")),
    # State.
    Field(
        "status",
        "text",
        "see mcp_celery.engine.status",
        ("create", "change", "answer", "ask", "hand_back", "park", "questions", "recover", "start", "withdraw"),
    ),
    Field(
        "status_message",
        "text",
        "for people; empty: none any more",
        ("create", "change", "hand_back", "lost", "recover", "requeue", "start", "turns", "waiting"),
    ),
    Field("progress", "json", "[value, total] of the last progress", ("change",)),
    Field("is_error", "flag", "of a completed task: whether its result says isError", ("change",)),
    Field("error", "json", "of a failed task: [code, message, data]", ("change",)),
    # The job, and which attempt of it counts.
    Field("leg", "integer", "which job of the task, from 1", ("create", "park")),
    Field(
        "attempt",
        "integer",
        "which publication counts",
        ("create", "hand_back", "park", "recover", "requeue", "start"),
    ),
    Field("redeliveries", "integer", "how often its worker died or the broker lost the job", ("lost", "recover")),
    Field("handbacks", "integer", "how often workers of another version handed it back", ("hand_back",), "attempt"),
    Field("handback_pauses_ms", "integer", "how long the pauses after that were together", ("hand_back",), "attempt"),
    Field("retries", "integer", "Celery's count of retries of this attempt", ("change",), "leg"),
    Field("retry_at_ms", "time", "when the next retry begins", ("change",), "leg"),
    Field("start_before_ms", "time", "when a body that has not started is too late", ("create", "answer"), "leg"),
    Field("claim_worker", "text", "the worker that received the job", ("claims",), "release"),
    Field("claim_retries", "integer", "the retries that it was delivered with", ("claims",), "release"),
    Field("claim_at_ms", "time", "when it was received", ("claim", "start"), "release"),
    Field("started_retries", "integer", "how many retries the last body to start had", ("start",), "attempt"),
    Field("started_at_ms", "time", "when that body started", ("start", "change"), "attempt"),
    Field("started_by", "text", "the delivery that started it, which may ask again", ("start",), "attempt"),
    # Questions.
    Field("asked", "integer", "how many questions the task has asked", ("questions",)),
    Field("parked", "flag", "whether the next job waits for all answers", ("park",)),
    # What repeats of calls are answered.
    Field("calls", "text", "the last calls that changed the record, and their answers (repeated.lua)", ("repeated",)),
    # Other keys that this task is in, so that scripts find them.
    Field("snapshot_key", "text", "the string with the creating request"),
    Field("result_key", "text", "where Celery keeps the job's result in this Redis", ("create", "park")),
    Field("alias", "text", "the string that leads from a shortened Celery id to the compound key"),
    Field("listed_in", "text", "the owner's list"),
    Field("listed_at", "text", "the task's position in it"),
    Field("counted_in", "text", "the counters that the open task occupies, and its limits on jobs, one name a line"),
    Field("limits", "text", "how many places each of its limits has, and its name, one a line; absent: no limit"),
    Field("waits_in", "text", "the limit that it waits for a place of, or the line", ("waiting",)),
    Field("line", "text", "the line in which it waits for its caller's turn; absent: callers take no turns"),
    Field("stored_in", "text", "the sorted set that counts the bytes kept for its owner"),
    Field("idempotency_in", "text", "the hash that leads to this task from its request's idempotency key"),
    Field("remembered_in", "text", "the hash of what the reaper must know when the record has expired"),
    Field("abandon_after_ms", "integer", "how long the open task may be without its owner; absent: for ever"),
    Field("attended_in", "text", "the sorted set of tasks that their owners may abandon"),
    Field("webhooks_in", "text", "the sorted set of webhooks to deliver; absent: the task has none"),
    Field("webhook_contents", "flag", "whether its webhooks contain its status message"),
)  # fmt: skip
"""The table, in the order in which a reader meets the fields."""

_STEPS: Final[dict[Reset, frozenset[Reset]]] = {
    "release": frozenset({"release"}),
    "attempt": frozenset({"release", "attempt"}),
    "leg": frozenset({"release", "attempt", "leg"}),
}
"""Which resets a step includes."""


def reset_by(step: Reset) -> list[str]:
    """The names of the fields that a step deletes.

    >>> reset_by("release")
    ['claim_worker', 'claim_retries', 'claim_at_ms']
    """
    return [field.name for field in FIELDS if field.reset in _STEPS[step]]


FIXED: Final = [field.name for field in FIELDS if field.fixed]
"""The names of the fields that are signed, and sealed with the task's request."""


def _lua_list(name: str, fields: list[str]) -> str:
    return f"local {name} = {{{', '.join(repr(field) for field in fields)}}}\n"


LUA: Final = "".join(
    (*(_lua_list(f"RESET_BY_{step.upper()}", reset_by(step)) for step in _STEPS), _lua_list("FIXED", FIXED))
)
"""The lists as Lua, in front of every script: ``RESET_BY_RELEASE``, ``…_ATTEMPT``, ``…_LEG`` and ``FIXED``."""
