"""Metrics and traces of real servers and workers, as Prometheus and an OTLP receiver get them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx2
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support.deployment import Deployment, deployed
from tests.support.locks import reserved_port
from tests.support.otlp import Received, SpanSeen, receiver
from tests.support.programs import ROOT
from tests.support.waiting import eventually
from tests.support.wire import JSON, Wire, follow

pytestmark = [pytest.mark.anyio, pytest.mark.smoke]

SPEC = "tests.support.servers.measured:server"
TRACE = "0af7651916cd43dd8448eb211c80319c"
CLIENT_SPAN = "b7ad6b7169203331"
IN_TRACE = {"traceparent": f"00-{TRACE}-{CLIENT_SPAN}-01"}
Process = Literal["server", "worker"]
INSTRUMENTED = {"asyncio": "", "prefork": "1"}
"""By pool: whether ``opentelemetry-instrumentation-celery`` makes its spans too."""


@dataclass(frozen=True)
class Site:
    """A server and a worker, and what they export."""

    deployment: Deployment
    url: str
    worker_url: str
    received: Received
    is_instrumented: bool

    @property
    def ours(self) -> str:
        return self.deployment.namespace

    async def scrape(self, process: Process) -> dict[str, float]:
        """The metrics of a process: the values by name and labels, without those that exporters add."""
        url = self.worker_url if process == "worker" else self.url.replace("/mcp", "/metrics")
        async with httpx2.AsyncClient() as client:
            response = await client.get(url)
        assert response.status_code == 200, response.text
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(response.text):
            for sample in family.samples:
                labels = {name: value for name, value in sample.labels.items() if not name.startswith("otel_")}
                found[f"{sample.name}{sorted(labels.items())}"] = sample.value
        return found

    async def value(self, process: Process, name: str, **labels: str) -> float:
        """The sum of a metric's values that have these labels."""
        wanted = {f"('{label}', '{value}')" for label, value in labels.items()}
        found = await self.scrape(process)
        return sum(
            value for key, value in found.items() if key.startswith(f"{name}[") and all(one in key for one in wanted)
        )

    async def span(self, span_id: str | None) -> SpanSeen:
        """The span with an id, as soon as its process has sent it, which it does after those of its children."""

        def found() -> list[SpanSeen]:
            return [span for span in self.received.spans if span.span_id == span_id]

        [span] = await eventually(found, what=f"the span {span_id}", seconds=30)
        return span

    async def spans(self, *names: str, task_id: str) -> list[SpanSeen]:
        """The first span of each name that is of a task, when all have come."""

        def found() -> list[SpanSeen]:
            mine = [span for span in tuple(self.received.spans) if task_id.startswith(_task(span))]
            first = {span.name: span for span in reversed(mine)}
            return [first[name] for name in names] if first.keys() >= {*names} else []

        return await eventually(found, what=f"the spans {names} of {task_id}", seconds=30)


def _task(span: SpanSeen) -> str:
    return str(span.attributes.get("mcp_celery.task", "none")).rstrip("…")


@pytest.fixture(scope="module", params=[*INSTRUMENTED])
def site(request: pytest.FixtureRequest, store_url: str) -> Iterator[Site]:
    pool: str = request.param
    with receiver() as received, reserved_port() as port:
        settings = {
            "MCP_CELERY_TELEMETRY": "prometheus,otlp",
            "OTEL_EXPORTER_OTLP_ENDPOINT": received.url,
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "OTEL_METRIC_EXPORT_INTERVAL": "200",
            "MEASURED_INSTRUMENT": INSTRUMENTED[pool],
            "MCP_CELERY_WORKER_HEALTH_PORT": str(port),
            "MCP_CELERY_MAX_FAILED_LOOKUPS_PER_MINUTE": "2",
        }
        name = f"telemetry-{pool}-{os.urandom(3).hex()}"
        with deployed(store_url, name, spec=SPEC, settings=settings) as deployment, deployment.worker(pool):
            metrics = f"http://127.0.0.1:{port}/metrics"
            yield Site(deployment, deployment.serve(), metrics, received, bool(INSTRUMENTED[pool]))


MEASURED: tuple[tuple[Process, str], ...] = (
    ("server", "mcp_celery_tasks_created_total"),
    ("server", "mcp_celery_notification_delay_seconds_count"),
    ("worker", "mcp_celery_tasks_started_total"),
    ("worker", "mcp_celery_task_queue_duration_seconds_count"),
    ("worker", "mcp_celery_task_run_duration_seconds_count"),
    ("worker", "mcp_celery_task_duration_seconds_count"),
)
"""Where what is measured."""
NAME = re.compile(r"\bmcp_(?:celery|server)_[a-z_]+")
NEEDS_A_DEATH = {"mcp_celery_tasks_recoveries_total"}
"""Only a worker that dies makes it; test_deaths.py has those."""


async def _is_empty(missing: Callable[[], Awaitable[set[str]]]) -> bool:
    return not await missing()


async def ended(wire: Wire, task_id: str) -> JSON:
    return (await follow(wire, task_id))[-1]


class TestMetrics:
    async def test_tasks_are_counted_where_they_change(self, site: Site) -> None:
        ended_before = await site.value("worker", "mcp_celery_tasks_ended_total", component="fine")
        async with Wire(site.url) as wire:
            for _ in range(5):  # several of prefork's children
                await ended(wire, (await wire.create("fine"))["taskId"])
            await ended(wire, (await wire.create("broken"))["taskId"])

        async def counted() -> bool:
            fine = await site.value("worker", "mcp_celery_tasks_ended_total", component="fine", status="completed")
            return fine - ended_before == 5

        await eventually(counted, what="the parent has the measurements of its children", seconds=30)
        value, labels = site.value, {"component": "broken", "type": "tool"}
        wrong = {"status": "completed", "cause": "completed", "tool_error": "true"}
        assert await value("worker", "mcp_celery_tasks_ended_total", **labels, **wrong) >= 1
        assert await value("worker", "mcp_celery_tasks_ended_total", component="fine", tool_error="true") == 0
        for process, name in MEASURED:
            assert await value(process, name, component="fine") >= 5, name
        assert await value("server", "mcp_celery_tasks_ended_total") == 0, "counted once, where it happened"

    async def test_requests_are_measured_and_labels_bounded(self, site: Site) -> None:
        name = "mcp_server_operation_duration_seconds_count"
        async with Wire(site.url) as wire:
            assert (await wire.call("no-such-tool")).result["isError"] is True
            assert "error" in (await wire.ask("no/such-method")).message
            refused = [(await wire.ask("tasks/get", {"taskId": "f" * 32})).error["code"] for _ in range(4)]
        assert await site.value("server", name, mcp_method_name="_OTHER", error_type="-32601") >= 1
        unknown = {"gen_ai_tool_name": "_OTHER", "error_type": "tool_error"}
        assert await site.value("server", name, mcp_method_name="tools/call", **unknown) >= 1
        assert await site.value("server", "mcp_celery_requests_refused_total", limit="failed_lookups") >= 1, refused
        text = str(await site.scrape("server")) + str(await site.scrape("worker"))
        assert not [word for word in ("no-such", "f" * 32, "anon:") if word in text]

    async def test_every_metric_of_the_dashboard_and_of_the_alerts_is_there(self, site: Site, tmp_path: Path) -> None:
        dashboard = json.loads((ROOT / "config" / "grafana" / "dashboard.json").read_text())
        alerts = yaml.safe_load((ROOT / "config" / "prometheus" / "alerts.yml").read_text())
        rules = [rule for group in alerts["groups"] for rule in group["rules"]]
        named = {name for rule in rules for name in NAME.findall(rule["expr"])}
        assert {rule["alert"] for rule in rules if not NAME.search(rule["expr"])} == set()
        for panel in dashboard["panels"]:
            named |= {name for target in panel["targets"] for name in NAME.findall(target["expr"])}
        async with Wire(site.url) as wire:
            for tool in ("fine", "broken"):
                await ended(wire, (await wire.create(tool))["taskId"])
            await ended(wire, (await wire.create("second_time_lucky", path=str(tmp_path / "notes")))["taskId"])
            for _ in range(4):
                await wire.ask("tasks/get", {"taskId": "f" * 32})

        async def missing() -> set[str]:
            seen = {*await site.scrape("server"), *await site.scrape("worker")}
            return named - NEEDS_A_DEATH - {key.partition("[")[0] for key in seen}

        await eventually(lambda: _is_empty(missing), what="each is in a scrape", seconds=30)
        assert len(named) > 12

    async def test_otlp_gets_the_metrics_of_parents_alone(self, site: Site) -> None:
        async with Wire(site.url) as wire:
            await ended(wire, (await wire.create("fine"))["taskId"])
        expected = {
            (f"{site.ours}-worker", "mcp_celery.tasks.ended"),
            (f"{site.ours}-server", "mcp.server.operation.duration"),
        }
        await eventually(lambda: expected <= site.received.metrics, seconds=30)


class TestTraces:
    async def test_one_trace_leads_from_the_request_to_the_notification(self, site: Site) -> None:
        async with Wire(site.url, meta=IN_TRACE) as wire:
            task_id = (await wire.create("fine"))["taskId"]
            result = (await ended(wire, task_id))["result"]
        create, publish, wait, run, notify = await site.spans(
            "create fine", "publish fine", "wait fine", "run fine", "notify fine", task_id=task_id
        )
        assert {span.trace_id for span in (create, publish, wait, run, notify)} == {TRACE}
        assert result["structuredContent"]["result"] == TRACE, "the tool's own spans are in the trace"
        request = await site.span(publish.parent)
        assert request.name == "tools/call fine"
        assert (request.parent, create.parent) == (CLIENT_SPAN, request.span_id)
        assert wait.parent == run.parent
        assert not run.links
        assert notify.parent == request.span_id
        assert (publish.service, run.service) == (f"{site.ours}-server", f"{site.ours}-worker")
        if not site.is_instrumented:
            assert run.parent == publish.span_id
            return
        # What instruments Celery has its spans between, in the same trace.
        celery_run = await site.span(run.parent)
        assert celery_run.name.startswith("run/mcp.")
        celery_publish = await site.span(celery_run.parent)
        assert celery_publish.parent == publish.span_id
        assert celery_run.trace_id == TRACE

    async def test_a_retry_is_in_the_trace_and_linked_to_the_run_before(self, site: Site, tmp_path: Path) -> None:
        async with Wire(site.url, meta=IN_TRACE) as wire:
            task_id = (await wire.create("second_time_lucky", path=str(tmp_path / "notes")))["taskId"]
            assert (await ended(wire, task_id))["status"] == "completed"

        def runs() -> list[SpanSeen]:
            return [span for span in site.received.named("run second_time_lucky") if task_id.startswith(_task(span))]

        await eventually(lambda: len(runs()) == 2, seconds=30)
        first, second = sorted(runs(), key=lambda span: int(span.attributes["mcp_celery.retries"]))
        assert (first.trace_id, second.trace_id) == (TRACE, TRACE)
        assert first.failed
        assert first.attributes["error.type"] == "ConnectionError"
        if site.is_instrumented:
            assert second.links, "the span that sent the retry, which Celery's instrumentation makes"
        else:
            assert second.links == {first.span_id}

    async def test_a_leg_is_in_the_trace_and_linked_to_the_answer(self, site: Site) -> None:
        async with Wire(site.url, meta=IN_TRACE, capabilities={"elicitation": {}}) as wire:
            task_id = (await wire.create("two_legs"))["taskId"]
            questions = await eventually(lambda: _questions(wire, task_id), seconds=30)
            wire.meta = {}
            await wire.update(task_id, dict.fromkeys(questions, _NAMED))
            assert (await ended(wire, task_id))["status"] == "completed"

        def runs() -> list[SpanSeen]:
            return [span for span in site.received.named("run two_legs") if task_id.startswith(_task(span))]

        await eventually(lambda: len(runs()) == 2, seconds=30)
        first, second = sorted(runs(), key=lambda span: int(span.attributes["mcp_celery.leg"]))
        assert (first.trace_id, second.trace_id) == (TRACE, TRACE)
        linked = await eventually(
            lambda: [one for one in site.received.spans if one.span_id in second.links], seconds=30
        )
        assert {span.trace_id for span in linked} != {TRACE}, "the request that brought the answer has its own trace"

    async def test_a_tool_that_raises_makes_its_span_an_error(self, site: Site) -> None:
        async with Wire(site.url) as wire:
            task_id = (await wire.create("broken"))["taskId"]
            await ended(wire, task_id)
        [run] = await site.spans("run broken", task_id=task_id)
        assert (run.failed, run.attributes["error.type"]) == (True, "tool_error")
        assert "it is broken" not in str(run)


_NAMED = {"action": "accept", "content": {"name": "Ada"}}


async def _questions(wire: Wire, task_id: str) -> JSON:
    task = await wire.get(task_id)
    return task["inputRequests"] if task["status"] == "input_required" else {}
