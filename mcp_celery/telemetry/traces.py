"""The spans of a task. All are in the trace of the request that created it.

================= ========================================== ===========================================================
span              parent                                     made in
================= ========================================== ===========================================================
``create …``      the request                                the server, by an observer of transitions
``publish …``     the request; else the creating request     any process that publishes the task's job
``wait …``        as the job's                               the worker, when the body starts
``run …``         what published its message, for the first  the worker
                  job; else the creating request
``notify …``      the creating request                       the server that notifies the client
================= ========================================== ===========================================================

A job that is not the first of its task (a retry, a leg, a recovery) links to the span that published its message: of a
leg that is the request which brought the last answer, of a retry the run before. A notification links to the request on
whose stream it is sent. ``opentelemetry-instrumentation-celery`` adds its own spans between ``publish`` and ``run``.

The record keeps the creating request's place in the trace, and each message has that of what published it.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.propagate import extract, inject
from opentelemetry.trace import INVALID_SPAN, Link, Span, SpanContext, SpanKind, Status, StatusCode

from mcp_celery.engine import TaskRecord, TaskRef, Transition, now_ms
from mcp_celery.errors import JobFailedError
from mcp_celery.telemetry.instruments import is_traced

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
AVAILABLE_HEADER: Final = "mcp_celery_available_at"
"""The header of a job's message that says when its job could start, in ms since the epoch. A hint, and not signed."""
_CARRIED: Final = (TRACEPARENT, TRACESTATE)
_MAX_CHARS: Final = 512
"""Of a header. W3C Trace Context has every process pass on that much."""
_LONGEST_WAIT_MS: Final = 31 * 86_400_000
"""A task does not live longer, so neither does its job wait."""

_NOWHERE: Final = INVALID_SPAN.get_span_context()
_UNTRACED: Final = nullcontext()
_tracer: Final = trace.get_tracer("mcp_celery")


def current_trace() -> dict[str, str]:
    """The current place in a trace as W3C headers; empty where there is none."""
    if not trace.get_current_span().get_span_context().is_valid:
        return {}
    carrier: dict[str, str] = {}
    inject(carrier)
    return {name: carrier[name] for name in _CARRIED if name in carrier}


def message_headers(available_at_ms: int) -> dict[str, Any]:
    """The fields of a job's message that describe its publication.

    Args:
        available_at_ms: When the job may start, in ms since the epoch.
    """
    return {AVAILABLE_HEADER: available_at_ms, **current_trace()}


def _extracted(headers: Mapping[str, str | None], into: Context | None = None) -> Context:
    given = {name: value for name, value in headers.items() if value is not None}
    return extract(given, into or Context()) if given else into or Context()


def _span_context(headers: Mapping[str, str | None]) -> SpanContext:
    return trace.get_current_span(_extracted(headers)).get_span_context()


@dataclass(frozen=True, slots=True)
class Delivered:
    """How a job was published, by its message. The message may be forged, so only spans and metrics use this.

    Attributes:
        headers: The place in a trace of what published it, as W3C headers.
        available_at_ms: When the job could start, in ms since the epoch; None where the message does not say.
    """

    headers: Mapping[str, str]
    available_at_ms: int | None = None

    @classmethod
    def of_message(cls, message: Any) -> Delivered:
        """Read a message.

        Args:
            message: What has its headers, and ``get``.
        """
        found = {name: message.get(name) for name in _CARRIED}
        at, now = message.get(AVAILABLE_HEADER), now_ms()
        return cls(
            {name: value for name, value in found.items() if isinstance(value, str) and len(value) <= _MAX_CHARS},
            min(at, now) if isinstance(at, int) and at > now - _LONGEST_WAIT_MS else None,
        )


NOT_DELIVERED: Final = Delivered({})
"""For a job that came with no message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpans:
    """The spans of one run of a job.

    Attributes:
        component: What its component is declared as.
        ref: Its task.
        attempt: Which publication of the task's job it is.
        leg: Which job of the task it is.
        retries: Celery's count of retries.
        delivered: What its message says.
        traceparent: The creating request's place in a trace, as the snapshot has it; None where there is none.
        tracestate: What tracing systems add to it.
    """

    component: str
    ref: TaskRef
    attempt: int
    leg: int
    retries: int
    delivered: Delivered
    traceparent: str | None
    tracestate: str | None

    @contextmanager
    def running(self) -> Generator[Span]:
        """The span of the run, and before it that of the wait. What the body does is in the trace.

        A JSON-RPC error, or any other, makes the span an error; its text is not in it.
        """
        if not is_traced():
            with self._in_creating_trace():
                yield INVALID_SPAN
            return
        parent, links = self._place()
        attributes = {
            **_of_task(self.ref, self.component),
            "mcp_celery.attempt": self.attempt,
            "mcp_celery.leg": self.leg,
            "mcp_celery.retries": self.retries,
        }
        if (waited_from := self.delivered.available_at_ms) is not None:
            waiting = _tracer.start_span(
                f"wait {self.component}", parent, attributes=attributes, start_time=waited_from * 1_000_000
            )
            waiting.end()
        with _tracer.start_as_current_span(
            f"run {self.component}",
            parent,
            SpanKind.CONSUMER,
            attributes,
            links,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield span
            except Exception as error:
                fail(span, _type_of(error))
                raise

    def _creating(self) -> Context:
        return _extracted({TRACEPARENT: self.traceparent, TRACESTATE: self.tracestate}, context.get_current())

    @contextmanager
    def _in_creating_trace(self) -> Generator[None]:
        """Pass the trace on without an SDK, so that what the body calls is in it."""
        if self.traceparent is None:
            yield
            return
        token = context.attach(self._creating())
        try:
            yield
        finally:
            context.detach(token)

    def _place(self) -> tuple[Context, list[Link]]:
        """The parent of the run's span, and what it links to."""
        creating = self._creating()
        origin = trace.get_current_span(creating).get_span_context() if self.traceparent else _NOWHERE
        around = trace.get_current_span().get_span_context()  # of what instruments Celery
        publisher = _span_context(self.delivered.headers)
        is_first = self.attempt == self.leg == 1 and self.retries == 0
        if around.is_valid and (not origin.is_valid or around.trace_id == origin.trace_id):
            parent, chosen = context.get_current(), around
        elif publisher.is_valid and (not origin.is_valid or (is_first and publisher.trace_id == origin.trace_id)):
            parent, chosen = _extracted(self.delivered.headers, context.get_current()), publisher
        else:
            parent, chosen = creating, origin
        linked = {one.span_id: one for one in (around, publisher) if one.is_valid}
        if is_first:
            linked.pop(publisher.span_id, None)
        linked.pop(chosen.span_id, None)
        return parent, [Link(one) for one in linked.values()]


def _type_of(error: Exception) -> str:
    """The name of a job's error: a JSON-RPC code, or the class of the exception that the component raised."""
    if isinstance(error, JobFailedError):
        return str(error.args[0])
    reason = getattr(error, "reason", None)
    return type(reason if isinstance(reason, Exception) else error).__name__


def fail(span: Span, error_type: str) -> None:
    """Mark a span as failed.

    Args:
        span: The span.
        error_type: Of a fixed list: a JSON-RPC code, the name of a class, or ``tool_error``.
    """
    span.set_attribute("error.type", error_type)
    span.set_status(Status(StatusCode.ERROR))


def trace_creation(transition: Transition) -> None:
    """Make the span of a task's creation, its publication included. An observer."""
    if transition.cause == "submitted" and is_traced():
        attributes = _of_task(transition.ref, transition.component)
        _tracer.start_span(
            f"create {transition.component}", attributes=attributes, start_time=transition.at_ms * 1_000_000
        ).end()


def publishing(record: TaskRecord) -> AbstractContextManager[object]:
    """The span of publishing a task's job.

    Args:
        record: The task.
    """
    if not is_traced():
        return _UNTRACED
    component = record.declared_as or record.component
    inside = trace.get_current_span().get_span_context().is_valid
    return _tracer.start_as_current_span(
        f"publish {component}",
        None if inside else _extracted({TRACEPARENT: record.traceparent}, context.get_current()),
        SpanKind.PRODUCER,
        {**_of_task(record.ref, component), "mcp_celery.attempt": record.attempt, "mcp_celery.leg": record.leg},
    )


def notifying(record: TaskRecord, method: str) -> AbstractContextManager[object]:
    """The span of one notification of a task's client.

    Args:
        record: The task, as it is reported.
        method: The notification's method.
    """
    if not is_traced():
        return _UNTRACED
    component = record.declared_as or record.component
    stream = trace.get_current_span().get_span_context()
    parent = _extracted({TRACEPARENT: record.traceparent}, context.get_current())
    same = trace.get_current_span(parent).get_span_context().trace_id == stream.trace_id
    return _tracer.start_as_current_span(
        f"notify {component}",
        parent,
        SpanKind.PRODUCER,
        {**_of_task(record.ref, component), "mcp.method.name": method, "mcp_celery.status": record.status},
        [] if same or not stream.is_valid else [Link(stream)],
    )


def _of_task(ref: TaskRef, component: str) -> dict[str, str]:
    return {"mcp_celery.task": ref.shown_id, "mcp_celery.component": component}
