"""OpenTelemetry's SDK with its exporters. Imported only where the extra ``telemetry`` is installed and enabled."""

from __future__ import annotations

import logging
import os
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    MetricReader,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from prometheus_client import REGISTRY
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from typing_extensions import override

logger = logging.getLogger(__name__)


class _OfThisProcess(MetricExporter):
    """Exports in the process that made it. A forked child, whose measurements go to its parent, has the parent's
    counters, and would export them once more.
    """

    def __init__(self, exporter: MetricExporter) -> None:
        super().__init__()
        # Which temporality and which aggregations a receiver wants, the exporter reads from the environment.
        self._preferred_temporality = exporter._preferred_temporality
        self._preferred_aggregation = exporter._preferred_aggregation
        self._exporter = exporter
        self._pid = os.getpid()

    @override
    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        if os.getpid() != self._pid:
            return MetricExportResult.SUCCESS
        return self._exporter.export(metrics_data, timeout_millis, **kwargs)

    @override
    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return self._exporter.force_flush(timeout_millis)

    @override
    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        self._exporter.shutdown(timeout_millis, **kwargs)


class Exporting:
    """The exporters of this process.

    Args:
        meters: The provider of metrics; None where the program has its own.
        traces: The provider of spans; None where there is none, or the program has its own.
    """

    def __init__(self, meters: MeterProvider | None, traces: TracerProvider | None) -> None:
        self._providers = [one for one in (meters, traces) if one is not None]

    def exposition(self) -> tuple[bytes, str]:
        """The metrics in Prometheus' format: also those that the program itself has registered there.

        Returns:
            The body, and its content type.
        """
        return generate_latest(REGISTRY), CONTENT_TYPE_LATEST

    def flush(self) -> None:
        """Send what was not sent yet."""
        for provider in self._providers:
            try:
                provider.force_flush()
            except Exception as error:  # noqa: BLE001 - exporters raise what their transport raises
                logger.warning("could not send the last telemetry: %s", type(error).__name__)


def start(exporters: frozenset[str], service: str) -> Exporting:
    """Configure the global providers. Those that the program has configured stay.

    The SDK does not end them with the process, for which it would wait for a receiver that is gone:
    :meth:`Exporting.flush` sends what is left.

    Args:
        exporters: ``prometheus``, ``otlp`` or both. The variables ``OTEL_EXPORTER_OTLP_…`` say where OTLP goes.
        service: The name of the service, where ``OTEL_SERVICE_NAME`` names none.
    """
    is_named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    resource = Resource.create({} if is_named else {"service.name": service})
    meters = None
    if isinstance(metrics.get_meter_provider(), MeterProvider):
        logger.warning("MCP_CELERY_TELEMETRY exports no metrics: this program has configured a meter provider itself")
    else:
        readers: list[MetricReader] = []
        if "prometheus" in exporters:
            readers.append(PrometheusMetricReader())
        if "otlp" in exporters:
            readers.append(PeriodicExportingMetricReader(_OfThisProcess(OTLPMetricExporter())))
        meters = MeterProvider(readers, resource, shutdown_on_exit=False)
        metrics.set_meter_provider(meters)
    traces = None
    if "otlp" in exporters and not isinstance(trace.get_tracer_provider(), TracerProvider):
        traces = TracerProvider(resource=resource, shutdown_on_exit=False)
        traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        trace.set_tracer_provider(traces)
    return Exporting(meters, traces)
