"""How the answers of a task may differ from those of a plain call: a short list, each with its reason.

The same list stands in ``docs/protocol.md``. What differs otherwise is a fault.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, cast

from mcp_celery.engine import MAX_MESSAGE_CHARS
from tests.differential.calls import JSON, NO_ANSWER, SERVER_ERROR, Number, Outcome, Revision

Way = Literal["task", "server", "worker"]
WAYS: Final[tuple[Way, ...]] = ("task", "server", "worker")
"""How a server with tasks runs a call: as a task; in the foreground by itself; in the foreground on a worker."""

_CRASH: Final = re.compile(r"Error executing tool t\d+")
_ADDRESS: Final = re.compile(r"0x[0-9a-f]{6,}")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_LABELS: Final = frozenset({"io.modelcontextprotocol/related-task", "io.modelcontextprotocol/serverInfo"})
_DEEP: Final = 250
"""Levels of a result that with a task around it are more than pydantic encodes, which is 255."""
_INVALID_PARAMS: Final = Number("-32602")
_INTERNAL_ERROR: Final = Number("-32603")


@dataclass(frozen=True)
class Pair:
    """Two answers to one call.

    Args:
        logs: Whether the tool sends log messages.
        revision: In which revision.
        way: How the server with tasks ran it.
        plain: What a plain server answered.
        other: What the server with tasks answered.
    """

    logs: bool
    revision: Revision
    way: Way
    plain: Outcome
    other: Outcome


@dataclass(frozen=True)
class Difference:
    """One that is documented.

    Args:
        text: What differs, as the documentation has it.
        reason: Why.
        ways: Where it may be.
        expected: Gives both answers without the difference, where there is this one.
    """

    text: str
    reason: str
    ways: frozenset[Way]
    expected: Callable[[Pair], Pair]


def _without_labels(pair: Pair) -> Pair:
    return replace(pair, plain=_unlabelled(pair.plain), other=_unlabelled(pair.other))


def _unlabelled(outcome: Outcome) -> Outcome:
    if outcome.kind != "result" or not isinstance(outcome.content.get("_meta"), dict):
        return outcome
    content = cast(JSON, outcome.content)
    meta = {name: value for name, value in content["_meta"].items() if name not in _LABELS}
    rest = {name: value for name, value in content.items() if name != "_meta"}
    return replace(outcome, content={**rest, **({"_meta": meta} if meta else {})})


def _refused(pair: Pair) -> Pair:
    """Of an answer that made no task."""
    if pair.revision != "2025-11-25" or pair.other.status is not None or not _is_error(pair.plain):
        return pair
    code, message = pair.other.content.get("code"), str(pair.other.content.get("message"))
    refused = code == _INVALID_PARAMS and message.startswith(("Invalid arguments for tool ", "Unknown tool: "))
    return replace(pair, plain=pair.other) if refused else pair


def _with_marks(pair: Pair) -> Pair:
    if pair.plain == Outcome("broken", NO_ANSWER) and pair.other.kind in ("result", "error"):
        return replace(pair, plain=pair.other)
    return replace(pair, plain=replace(pair.plain, content=_mapped(pair.plain.content, _marked)))


def _marked(text: str) -> str:
    return _SURROGATE.sub("?", text)


def _older_revision(pair: Pair) -> Pair:
    if pair.revision != "2026-07-28":
        return pair
    older = _mapped(pair.plain.content, lambda text: text.replace(pair.revision, "2025-11-25"))
    return replace(pair, plain=replace(pair.plain, content=older))


_NOT_SERIALIZED: Final = {"code": _INTERNAL_ERROR, "message": "The job's result could not be serialized"}


def _unserializable(pair: Pair) -> Pair:
    if (pair.other.kind, pair.other.content) == ("error", _NOT_SERIALIZED) and _is_unserializable(pair.plain):
        return replace(pair, plain=pair.other)
    return pair


def _too_deep(pair: Pair) -> Pair:
    refused = (pair.other.kind, pair.other.content) == ("error", _NOT_SERIALIZED)
    return replace(pair, plain=pair.other) if refused and _depth(pair.plain.content) >= _DEEP else pair


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        value = list(cast(JSON, value).values())
    return 1 + max(map(_depth, cast("list[Any]", value)), default=0) if isinstance(value, list) else 0


def _is_unserializable(plain: Outcome) -> bool:
    if plain.kind != "error":
        return plain.content in (NO_ANSWER, SERVER_ERROR)
    code, message = plain.content["code"], plain.content["message"]
    sdks = message in ("Handler returned an invalid result", "Internal server error")
    return code == Number("0") or (code == _INTERNAL_ERROR and sdks)


def _without_data(pair: Pair) -> Pair:
    fails = pair.plain.kind == "broken" and pair.plain.content in (NO_ANSWER, SERVER_ERROR)
    left_out = pair.other.kind == "error" and "data" not in pair.other.content
    return replace(pair, plain=pair.other) if fails and left_out else pair


def _without_number(pair: Pair) -> Pair:
    content = pair.plain.content
    if pair.plain.kind != "error" or "data" not in content or content["data"] is not None:
        return pair
    return replace(pair, plain=replace(pair.plain, content={name: content[name] for name in content if name != "data"}))


def _logged(pair: Pair) -> Pair:
    """Of what is sent: a plain server of 2026-07-28 sends nothing that was not asked for."""
    if not (pair.logs and pair.revision == "2025-11-25" and _is_error(pair.plain)):
        return pair
    return replace(pair, plain=pair.other) if _is_crash(pair.plain) and pair.other.kind != "lost" else pair


def _is_crash(plain: Outcome) -> bool:
    """Whether an error is the SDK's for an exception. A tool's own may have no content, or an image."""
    return [bool(_CRASH.fullmatch(str(block.get("text")))) for block in plain.content["content"]] == [True]


def _cut(pair: Pair) -> Pair:
    if pair.plain.kind != "error":
        return pair
    cut = {**pair.plain.content, "message": pair.plain.content["message"][:MAX_MESSAGE_CHARS]}
    return replace(pair, plain=replace(pair.plain, content=cut))


def _same(pair: Pair) -> Pair:
    """Of a call that is not made on a plain server."""
    return pair


_TASK: Final[frozenset[Way]] = frozenset({"task"})
_JOB: Final[frozenset[Way]] = frozenset({"task", "worker"})

DIFFERENCES: Final[Sequence[Difference]] = (
    Difference(
        "`_meta` of the result: at 2025-11-25 it names the task, at 2026-07-28 it has no `serverInfo`",
        "revision 2025-11-25 asks for the first; the second is in the `_meta` of the answer that has the result in it",
        _TASK,
        _without_labels,
    ),
    Difference(
        "an unknown tool, or arguments that the tool refuses, at 2025-11-25: -32602, and no result with `isError`",
        "the server checks them first, and creates no task for them",
        _TASK,
        _refused,
    ),
    Difference(
        "half of a surrogate pair in a text: `?`",
        "UTF-8 cannot carry it; a plain server of 2025-11-25 cannot answer at all",
        _JOB,
        _with_marks,
    ),
    Difference(
        "`ctx.protocol_version` in a job: always 2025-11-25",
        "with later revisions the SDK would return a question of `ctx.elicit` instead of asking it",
        _JOB,
        _older_revision,
    ),
    Difference(
        "a result that cannot be serialized: always -32603, `The job's result could not be serialized`",
        "so that it differs from an exception of the tool, on each revision",
        _JOB,
        _unserializable,
    ),
    Difference(
        "a result of 250 nested levels or more: -32603, `The job's result could not be serialized`",
        "the SDK encodes 255 levels, and a task around the result adds some",
        _JOB,
        _too_deep,
    ),
    Difference(
        "the `data` of an error that has no JSON form: left out",
        "so that its client has the error; a plain server cannot answer at all",
        _JOB,
        _without_data,
    ),
    Difference(
        "the `data` of an error that is NaN or an infinity, and nothing else: left out",
        "it is `null` in JSON, which means that there is no data",
        _JOB,
        _without_number,
    ),
    Difference(
        "a log message whose data is not JSON, at 2025-11-25: the tool continues",
        "it is the task's status message; the SDK sends it, which fails, and so does the tool",
        _JOB,
        _logged,
    ),
    Difference(
        "the message of an error, after 2,000 characters: cut",
        "it is the task's status message, which each push and each poll carries",
        _JOB,
        _cut,
    ),
    Difference(
        "an exception that is not an `Exception`, such as `SystemExit`: -32603 with a reason",
        "a plain server ends, or its client waits without an answer; servers and workers with tasks continue",
        frozenset(WAYS),
        _same,
    ),
)


def compare(pair: Pair) -> str:
    """Hold two answers against each other.

    Returns:
        The first place where they differ, empty where they are the same but for what is documented.
    """
    pair = replace(pair, plain=_readable(pair.plain), other=_readable(pair.other))
    for difference in DIFFERENCES:
        if pair.way in difference.ways:
            pair = difference.expected(pair)
    if pair.plain.kind != pair.other.kind:
        return f"{_shown(pair.plain)} became {_shown(pair.other)}"
    if found := _where(pair.plain.content, pair.other.content, pair.plain.kind):
        return found
    return _status(pair)


def compare_listed(plain: Outcome, other: Outcome) -> str:
    """Hold what two servers list of a tool against each other, None as content where they have no such tool."""
    if isinstance(other.content, dict):
        described = {name: value for name, value in cast(JSON, other.content).items() if name != "execution"}
        other = replace(other, content=described)
    return _where(_readable(plain).content, _readable(other).content, "tools/list")


def compare_fatal(other: Outcome) -> str:
    """Judge the answer to a call that would end a plain server."""
    if other.kind != "error":
        return f"an exception that is no Exception became {_shown(other)}"
    if not other.content.get("message"):
        return "an error without a reason"
    return ""


def _status(pair: Pair) -> str:
    """What the status of a task should be otherwise."""
    other = pair.other
    if other.status is None:
        return ""
    failed = other.kind == "error" or (pair.revision == "2025-11-25" and _is_error(other))
    expected = "failed" if failed else "completed"
    if other.status != expected:
        return f"the status is {other.status}, not {expected}"
    if other.kind == "error" and (other.message or "") != other.content["message"]:
        return f"the status message is {other.message!r}, not that of the error"
    return ""


def _is_error(outcome: Outcome) -> bool:
    return outcome.kind == "result" and outcome.content.get("isError") is True


def _readable(outcome: Outcome) -> Outcome:
    """Without the addresses of objects, which differ between any two processes."""
    return replace(outcome, content=_mapped(outcome.content, lambda text: _ADDRESS.sub("0x…", text)))


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(name): _mapped(one, change) for name, one in cast(JSON, value).items()}
    if isinstance(value, list):
        return [_mapped(one, change) for one in cast("list[Any]", value)]
    return value


def _where(plain: Any, other: Any, path: str) -> str:
    """The first place where two JSON values differ, with both; empty where they are equal."""
    if plain == other:
        return ""
    if isinstance(plain, dict) and isinstance(other, dict):
        left, right = cast(JSON, plain), cast(JSON, other)
        for name in sorted({*left, *right}):
            if name not in left or name not in right:
                where, value = ("the plain server", left[name]) if name in left else ("the task", right[name])
                return f"{path}.{name}: only {where} has it: {shortened(value)}"
            if found := _where(left[name], right[name], f"{path}.{name}"):
                return found
    if isinstance(plain, list) and isinstance(other, list):
        ones, others = cast("list[Any]", plain), cast("list[Any]", other)
        if len(ones) == len(others):
            found = (_where(one, two, f"{path}[{n}]") for n, (one, two) in enumerate(zip(ones, others, strict=True)))
            return next(filter(None, found))
    return f"{path}: {shortened(cast(object, plain))} became {shortened(cast(object, other))}"


def _shown(outcome: Outcome) -> str:
    return f"{outcome.kind} {shortened(outcome.content)}"


def shortened(value: object, length: int = 300) -> str:
    """What a value looks like, or begins with."""
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}…"
