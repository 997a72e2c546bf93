"""What was promised, held against what happened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, cast

from mcp_celery.engine.outcome import FAILURE_REASONS
from mcp_celery.errors import INTERNAL_ERROR, ComponentExitedError
from tests.soak.load import FOREGROUND, IN_SERVER, PLAIN, Call
from tests.soak.names import THEIR_TTL_SECONDS
from tests.soak.notes import Notes
from tests.soak.plant import Plant, Span
from tests.soak.server import REFUSED, big_text, changed_result, digest, exit_of
from tests.soak.stores import SoakStore
from tests.support.wire import JSON

MOST_RUNS: Final = {"again": 2, "flaky": 3}
"""How often the body of a tool may begin, where that is more than once: `again` may be repeated, `flaky` retries."""
NOTE_THEIR_ENDS: Final = ("once", "once_sync", "again", "big", "changed")
EXITING: Final = ("exits", "exits_sync", IN_SERVER)
DEATHS: Final = frozenset(
    FAILURE_REASONS[name] for name in ("WorkerDied", "WorkersDied", "WorkerLostError", "JobLost", "ResultLost")
)
"""Why a task of any tool may fail."""
NO_RETRY: Final = FAILURE_REASONS["OperationalError"]
VERSIONS: Final = "The job was not run, because it reached a worker of another version than the server's"
NO_WORKER: Final = "no other live worker has the server's version"
LEASE_SECONDS: Final = 15.0
EXITED: Final = "the tool raised SystemExit, KeyboardInterrupt or a BaseException of its own"
UNANSWERED: Final = "unanswered: the server died"
LIFETIMES: Final = {"theirs": THEIR_TTL_SECONDS}
"""How many seconds tasks live of which some have no other end."""
NOTICED_SECONDS: Final = 15.0
"""How long after an exposed job's end its task may be open: a server dies, and the store."""
THEIRS: Final = ("unacked", "unacked_index", "unacked_mutex", "_kombu.binding.")
"""What kombu's keys begin with, which have no lifetime."""


def findings(calls: Sequence[Call], notes: Notes, plant: Plant) -> Iterator[str]:
    """Every promise about calls that was broken, as a line."""
    for call in calls:
        for finding in _of_call(call, notes):
            yield f"{call.tool} {call.number} {finding}"
        if call.tool == "theirs" and notes.count("begun", call.number) and _job_id(call) in plant.purged:
            yield f"theirs {call.number} was purged, is not ours, and ran"
        if _is_of_no_version(call) and any(_ran_meanwhile(span, call) for span in plant.spans):
            yield f"changed {call.number} failed, while a worker of version {call.version} was there"


def _of_call(call: Call, notes: Notes) -> Iterator[str]:
    runs = notes.count("begun", call.number) + notes.count("tried", call.number)
    if call.refused is not None and runs and call.tool not in PLAIN:
        yield f"was refused with {call.refused} and ran"
    if runs > MOST_RUNS.get(call.tool, 1):
        yield f"ran {runs} times"
    if call.tool in PLAIN:
        yield from _of_foreground(call, notes)
    if call.task_id is None:
        return
    if call.lost:
        yield from _of_loss(call, notes)
    elif call.end is None:
        yield "has a task that is still open"
    elif call.end["status"] == "completed":
        yield from _of_result(call, call.end["result"], notes)
    elif call.end["status"] == "cancelled":
        yield "is cancelled, which nobody asked for"
    elif not _may_fail_so(call, call.end["error"]):
        yield f"failed with {call.end['error']}"


def _of_foreground(call: Call, notes: Notes) -> Iterator[str]:
    if call.tool == IN_SERVER:
        if call.end is not None:
            yield f"was answered with {call.end}"
        if call.refused is not None and call.reason != _exited(call):
            yield f"was answered with {call.refused}: {call.reason}"
    elif call.end is not None and not call.end.get("isError") and not _is_right(call, call.end, notes):
        yield f"was answered with {call.end}"


def _of_loss(call: Call, notes: Notes) -> Iterator[str]:
    """A task of somebody else's job that was lost is open until its lifetime ends. No other task may be lost."""
    lifetime = LIFETIMES.get(call.tool)
    if lifetime is None:
        yield "has a task that is not found"
    elif call.ended_at < call.created_at + lifetime - 1:
        yield "has a task that is not found before its time is over"
    elif any(at < call.ended_at - NOTICED_SECONDS for at in notes.times("stored", call.number)):
        yield "stored its result, which its task never had"


def _of_result(call: Call, result: JSON, notes: Notes) -> Iterator[str]:
    if not _is_right(call, result, notes):
        yield f"has the result {result}, with a server of version {call.version}"


def _is_right(call: Call, result: JSON, notes: Notes) -> bool:
    """Whether a result is that of a call whose body has run."""
    if call.tool == "theirs":
        runs = notes.count("begun", call.number) + notes.count("redelivered", call.number)
        texts = [block["text"] for block in result["content"]]
        return runs > 0 and not result.get("isError") and texts == [str(call.number)]
    if call.tool == "flaky" and call.number % 2:
        return result.get("isError") is True
    if call.tool in (*NOTE_THEIR_ENDS, FOREGROUND) and not notes.count("ended", call.number):
        return False
    if call.tool == "big":
        return result.get("digests") == 2 * [digest(big_text(call.number))]
    expected = changed_result(call.version, call.number) if call.tool == "changed" else {"result": call.number}
    return call.tool not in (*EXITING, "refuse") and result.get("structuredContent") == expected


def _may_fail_so(call: Call, error: JSON) -> bool:
    """Whether a task may fail with that error."""
    code, message = error["code"], error["message"]
    if call.tool == "theirs":
        return False
    if call.tool == "refuse" and (code, message) == (REFUSED, f"no {call.number}"):
        return True
    if code != INTERNAL_ERROR:
        return False
    return (
        message in DEATHS
        or (call.tool in EXITING and message == _exited(call))
        or (call.tool == "changed" and message.startswith(VERSIONS))
        or (call.tool == "flaky" and message == NO_RETRY)
    )


def _is_of_no_version(call: Call) -> bool:
    return call.tool == "changed" and call.end is not None and NO_WORKER in call.end.get("error", {}).get("message", "")


def _ran_meanwhile(span: Span, call: Call) -> bool:
    """Whether a worker of a call's version ran as long as its task was open, and a lease before."""
    return span.version == call.version and span.covers(call.created_at - LEASE_SECONDS, call.ended_at)


def _exited(call: Call) -> str:
    return str(ComponentExitedError(exit_of(call.number).__name__))


def _job_id(call: Call) -> str:
    """The Celery id of an anonymous caller's call."""
    return f"anon:{call.task_id}:tool:{call.tool}"


def of_store(store: SoakStore) -> Iterator[str]:
    """What is left in the store and should not be."""
    keys = store.keys
    of_namespace, *others = store.clients()
    for client in (of_namespace, *others):
        for key in cast("Iterator[str]", client.scan_iter(count=1000)):
            if client.ttl(key) == -1 and not key.startswith(THEIRS):
                yield f"the key {key} has no lifetime"
    if due := of_namespace.zcard(keys.due):
        yield f"{due} jobs are still due"
    if unclaimed := of_namespace.zcard(keys.unclaimed):
        yield f"{unclaimed} jobs are still unclaimed"
    for key in cast("Iterator[str]", of_namespace.scan_iter(match=keys.claims("*"), count=1000)):
        yield f"{of_namespace.scard(key)} claims are left in {key}"
    for client in (of_namespace, *others):
        client.close()


def of_purged(calls: Sequence[Call], purged: Mapping[str, float]) -> str:
    """Whose jobs the broker was made to lose, in a sentence."""
    of_theirs = {_job_id(call): call.tool == "theirs" for call in calls if call.task_id is not None}
    lost = Counter(of_theirs[one] for one in purged if one in of_theirs)
    return f"The broker was made to lose {lost[False]} jobs of the server and {lost[True]} of the exposed app."


def of_the_last(calls: Sequence[Call], calm_at: float) -> str:
    """How soon after the last deed all tasks had ended, in a sentence."""
    ends = [call.ended_at - calm_at for call in calls if call.end is not None and call.tool != "theirs"]
    return f"When everything ran again, the server's last task ended within {max([0.0, *ends]):.0f} s."


def outcomes(calls: Sequence[Call]) -> Counter[str]:
    """How the calls ended, in words."""
    return Counter(_outcome(call) for call in calls)


def _outcome(call: Call) -> str:
    if call.tool in PLAIN:
        return _outcome_in_the_foreground(call)
    if call.task_id is None:
        return UNANSWERED if call.refused is None else f"refused, {call.refused}"
    if call.end is None:
        return ("gone when its time was over" if call.tool in LIFETIMES else "lost") if call.lost else "open"
    return ": ".join(part for part in (call.end["status"], _reason(call, call.end.get("error"))) if part)


def _outcome_in_the_foreground(call: Call) -> str:
    if call.tool == IN_SERVER and call.reason == _exited(call):
        return f"answered in the server: {EXITED}"
    if call.refused is not None:
        return f"failed in the foreground, {call.refused}"
    if call.end is None:
        return UNANSWERED
    return "answered in the foreground" + (" with an error" if call.end.get("isError") else "")


def _reason(call: Call, error: JSON | None) -> str:
    if error is None:
        return ""
    if error["code"] == REFUSED:
        return "as the tool said"
    if error["message"] == _exited(call):
        return EXITED
    return "no live worker had the server's version" if error["message"].startswith(VERSIONS) else error["message"]
