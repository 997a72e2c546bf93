"""An option that a component declares reaches Celery wherever Celery takes it, also one that only its field names."""

from collections.abc import Generator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from celery.app.task import Context
from kombu import Connection

from mcp_celery.broker.job_message import FINGERPRINT_HEADER
from mcp_celery.broker.own_jobs import OwnJobs
from mcp_celery.broker.queue import CeleryQueue
from mcp_celery.common.formats import FORMAT, FORMAT_HEADER
from mcp_celery.config import TaskConfig, celery_option, celery_options_of
from mcp_celery.context import TaskContextSnapshot
from mcp_celery.engine import Caller, Submission, TaskRecord, now_ms
from mcp_celery.errors import ConfigurationError
from mcp_celery.exposed.jobs import find_job
from mcp_celery.exposed.publishing import publish_job
from mcp_celery.exposed.tools import config_of_canvas, config_of_job
from mcp_celery.sealing import UNSIGNED
from mcp_celery.telemetry.traces import AVAILABLE_HEADER
from mcp_celery.worker.job import WorkerRuntime, job_class

pytestmark = pytest.mark.anyio


@dataclass(frozen=True, slots=True, kw_only=True)
class Further(TaskConfig):
    """A configuration with options that nothing else in the package names."""

    default_retry_delay: int = celery_option(180, "class", exposed=None)
    shadow: str | None = celery_option(None, "header", exposed="header")
    compression: str | None = celery_option(None, "property", exposed="property")


ALL = Further(
    priority=3,
    time_limit=60,
    soft_time_limit=50,
    rate_limit="10/m",
    max_retries=None,
    expires=3600,
    default_retry_delay=7,
    shadow="shown",
    compression="zlib",
)


@pytest.fixture
def app() -> Celery:
    return Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)


@pytest.fixture
def queue_name() -> Generator[str]:
    """A queue of a broker in memory, which is one for the whole process."""
    name = f"options-{uuid4().hex}"
    yield name
    with Connection("memory://") as connection:
        connection.SimpleQueue(name).clear()


def message_in(queue: str) -> Any:
    with Connection("memory://") as connection:
        return connection.SimpleQueue(queue).get(timeout=10)


def job_of(config: TaskConfig) -> type[Any]:
    """The class of a component's job."""
    runtime: Any = WorkerRuntime(
        namespace="shop",
        ledger=lambda _: pytest.fail("nothing is stored"),
        living=lambda _worker, _components: pytest.fail("nothing lives here"),
        make_runner=lambda: pytest.fail("nothing runs here"),
        results="elsewhere",
    )
    return job_class("tool", "sell", config, runtime)


@pytest.mark.parametrize(
    ("backoff", "seconds"),
    [(False, [0, 0, 0]), (True, [1, 2, 4]), (3, [3, 6, 10]), (0.5, [1, 2, 4]), (2.5, [2, 4, 8])],
)
def test_a_retry_waits_as_long_as_celerys_own(backoff: Any, seconds: list[int]) -> None:
    config = TaskConfig(autoretry_for=(OSError,), retry_backoff=backoff, retry_backoff_max=10, retry_jitter=False)
    job = job_of(config)()
    assert [job._wait_before_retry(retries) for retries in range(3)] == seconds


def test_an_option_is_an_attribute_of_the_jobs_class_or_absent() -> None:
    job = job_of(ALL)
    found = {name: vars(job)[name] for name in celery_options_of(Further) if name in vars(job)}
    assert found == {
        "time_limit": 60,
        "soft_time_limit": 50,
        "rate_limit": "10/m",
        "max_retries": None,
        "default_retry_delay": 7,
    }


async def test_an_option_is_sent_with_the_message_of_a_components_job(app: Celery, queue_name: str) -> None:
    snapshot = TaskContextSnapshot(protocol_version="2026-07-28", params={"name": "sell"})
    submission = Submission(caller=Caller(), task_type="tool", component="sell", config=ALL, snapshot=snapshot)
    now = now_ms()
    record = TaskRecord(
        fingerprint="2-5ca1ab1e",
        task_id="task-1",
        scope=None,
        issuer=None,
        task_type="tool",
        component="sell",
        created_at_ms=now,
        updated_at_ms=now,
        ttl_ms=60_000,
        start_before_ms=now + 3_600_000,
        poll_interval_ms=1000,
    )
    queue = CeleryQueue(app, namespace="shop", default_queue=queue_name, timeout_seconds=10)
    try:
        await queue.publish(record, submission)
    finally:
        await queue.aclose()
    message = message_in(queue_name)
    assert message.properties["priority"] == 3
    assert message.headers["compression"] == "application/x-gzip"
    assert message.headers["shadow"] == "shown"
    assert message.headers["expires"] is not None
    assert message.headers[FINGERPRINT_HEADER] == "2-5ca1ab1e"
    assert message.headers["timelimit"] == [None, None], "the host's task_annotations would not override a message"


def test_the_options_of_a_message_are_known_without_the_component() -> None:
    options = {"priority": 3, "expires": 3600, "shadow": "shown", "compression": "zlib"}
    assert ALL.message_options() == options
    again = Further(queue="another", shadow="another", time_limit=5).with_message_options(options)
    assert again.message_options() == options
    assert again.time_limit == 5


@pytest.mark.parametrize(
    ("route", "queue"),
    [({"queue": "routed"}, "routed"), ("routed", "routed"), (None, "own"), ({"exchange": "fan"}, None)],
)
def test_the_queue_of_a_job_is_known_without_a_message(app: Celery, route: Any, queue: str | None) -> None:
    app.conf.task_routes = (lambda *_, **__: route,)  # pyright: ignore[reportUnknownLambdaType]
    jobs = OwnJobs(app, namespace="shop", default_queue="own", timeout_seconds=1)
    assert jobs.queue_of_job("mcp.shop.tool.sell", TaskConfig()) == queue
    assert jobs.queue_of_job("mcp.shop.tool.sell", TaskConfig(queue="declared")) == "declared"
    known: Any = app.amqp
    assert "routed" not in known.queues, "a worker would come to consume it"


def test_the_message_of_a_retry_says_the_version_too(app: Celery) -> None:
    runtime: Any = SimpleNamespace(namespace="shop", signer=UNSIGNED)
    job: Any = job_class("tool", "sell", ALL, runtime)()
    job.bind(app)
    for version in ({FINGERPRINT_HEADER: "2-5ca1ab1e"}, {}):
        request = Context({"id": "job-1", "kwargs": {"key": "k", "attempt": 1}, "retries": 0, **version})
        headers = job.signature_from_request(request, retries=1, countdown=60).options["headers"]
        assert headers.pop(AVAILABLE_HEADER) > now_ms() + 50_000, "its wait for a worker begins when it may start"
        assert headers == {FORMAT_HEADER: FORMAT, **version}


@pytest.mark.parametrize("queue", ["options-declared", None], ids=["declared queue", "route"])
def test_an_option_is_sent_with_the_message_of_an_exposed_job(app: Celery, queue_name: str, queue: str | None) -> None:
    app.conf.task_routes = {"shop.sell": {"queue": queue_name}}

    def sell() -> None: ...

    app.task(name="shop.sell", time_limit=5, shared=False)(sell)
    config = Further(queue=queue, priority=3, soft_time_limit=4, expires=3600, shadow="shown", compression="zlib")
    with Connection("memory://") as connection, connection.Producer() as producer:
        publish_job(
            app,
            find_job(app, "shop.sell"),
            "job-1",
            {},
            config=config_of_job(config, "sell"),
            shown="{}",
            producer=producer,
            timeout_seconds=10,
        )
    message = message_in(queue or queue_name)
    assert message.properties["priority"] == 3
    assert message.headers["compression"] == "application/x-gzip"
    assert message.headers["shadow"] == "shown"
    assert message.headers["expires"] is not None
    assert message.headers["timelimit"] == [5, 4], "the job's own, where the tool declares none"


@pytest.mark.parametrize("option", ["rate_limit", "max_retries", "default_retry_delay"])
def test_an_attribute_of_a_class_has_no_effect_on_an_exposed_job(option: str) -> None:
    options: dict[str, Any] = {option: 7}
    with pytest.raises(ConfigurationError, match=rf"{option}=….*has no effect; set it where the job is declared"):
        config_of_job(Further(**options), "sell")


@pytest.mark.parametrize("option", ["shadow", "compression", "queue"])
def test_no_option_of_celerys_has_an_effect_on_a_canvas(option: str) -> None:
    options: dict[str, Any] = {option: "x"}
    with pytest.raises(ConfigurationError, match=rf"{option}=….*has no effect; set it on the signatures"):
        config_of_canvas(Further(**options), "sell")
