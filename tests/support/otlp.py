"""What receives traces and metrics over OTLP, in the test's own process."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.http_server import LocalServer


@dataclass(frozen=True)
class SpanSeen:
    """One span, as it was received."""

    name: str
    service: str
    trace_id: str
    span_id: str
    parent: str
    links: frozenset[str]
    attributes: dict[str, Any] = field(hash=False)
    failed: bool


@dataclass
class Received:
    """Everything that has come."""

    url: str
    spans: list[SpanSeen] = field(default_factory=list[SpanSeen])
    metrics: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    """The names of the services, with those of their metrics."""

    def named(self, name: str) -> list[SpanSeen]:
        """The spans of a name, in the order in which they came."""
        return [span for span in self.spans if span.name == name]

    def take_traces(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = _attributes(resource.resource.attributes)["service.name"]
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans.append(
                        SpanSeen(
                            span.name,
                            service,
                            span.trace_id.hex(),
                            span.span_id.hex(),
                            span.parent_span_id.hex(),
                            frozenset(link.span_id.hex() for link in span.links),
                            _attributes(span.attributes),
                            span.status.code == span.status.STATUS_CODE_ERROR,
                        )
                    )

    def take_metrics(self, body: bytes) -> None:
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            service = _attributes(resource.resource.attributes)["service.name"]
            for scope in resource.scope_metrics:
                self.metrics.update((service, metric.name) for metric in scope.metrics)


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


@contextmanager
def receiver() -> Generator[Received]:
    """A receiver, for as long as the context lasts."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            (received.take_traces if self.path == "/v1/traces" else received.take_metrics)(body)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            pass

    with LocalServer(("127.0.0.1", 0), Handler) as server:
        received = Received(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield received
        finally:
            server.shutdown()
            thread.join()
