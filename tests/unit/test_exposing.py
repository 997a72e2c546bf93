"""Declaring exposed jobs: what a tool is made of, and what is refused in one clear line."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import partial
from typing import Any, Final

import pytest
from celery import Celery, chain, chord, group
from mcp.client import Client
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult
from mcp_types.version import LATEST_MODERN_VERSION
from pydantic import BaseModel, Field, RootModel

from mcp_celery import Settings, TaskConfig, TaskServer
from mcp_celery.client import TasksClient, call_tool_task
from mcp_celery.context import TaskContextSnapshot
from mcp_celery.engine import MAX_MESSAGE_CHARS, Caller, JSONObject, Submission
from mcp_celery.errors import ConfigurationError, InvalidRequestError
from mcp_celery.exposed import ExposedCatalog
from mcp_celery.exposed.arguments import sendable
from mcp_celery.exposed.canvas import Canvas, canvas_of
from mcp_celery.exposed.jobs import find_job
from mcp_celery.exposed.tools import ExposedCanvas, ExposedJob, Offer
from mcp_celery.server.celery_tasks import CeleryTasks, tasks_of
from mcp_celery.server.mcp_server_source import MCPServerSource
from tests.support.receiver import SECRET, receiving
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio


LONE: Final = "caf\udce9"
"""A name as ``os.listdir`` gives it, which UTF-8 cannot hold."""
LATE: Final = datetime(2030, 1, 1, tzinfo=UTC)


class Colour(enum.Enum):
    RED = "red"


class Order(BaseModel):
    day: date
    count: int = 1


class Sale(BaseModel):
    item: str
    amount: int = Field(3, alias="count")
    region: str | None = None


@dataclass
class Note:
    content: Any


class Holder(BaseModel):
    notes: list[Note]


class Unresolved(BaseModel):
    item: Nowhere  # pyright: ignore[reportUndefinedVariable] # noqa: F821


class Calling(BaseModel):
    item: Callable[[], None]


class Jobs:
    """An app with jobs."""

    def __init__(self) -> None:
        self.app = Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)
        task = partial(self.app.task, shared=False)

        @task(name="shop.sell")
        def sell(item: str, count: int = 1, *, region: str = "all") -> str:
            """Sell something."""
            return item * count + region

        @task(name="other.loose")
        def loose() -> Any: ...

        @task(name="shop.bound", bind=True)
        def bound(self: Any, order: Order) -> None:
            """Take an order."""

        @task(name="shop.quiet", ignore_result=True)
        def quiet() -> None: ...

        @task(name="shop.positional")
        def positional(item: str, /) -> str:
            return item

        @task(name="other.add")
        def add(left: int, right: int = 0) -> int:
            return left + right

        @task(name="mcp.shop.tool.ours")
        def ours() -> None: ...

        self.sell, self.bound, self.quiet, self.positional, self.add, self.ours = (
            *(sell, bound, quiet, positional, add, ours),
        )


@pytest.fixture
def jobs() -> Jobs:
    return Jobs()


@pytest.fixture
def server(jobs: Jobs) -> TaskServer:
    return TaskServer("shop", celery=jobs.app, settings=Settings.load(namespace="shop"))


async def schema_of(server: TaskServer, name: str) -> dict[str, Any]:
    (tool,) = [tool for tool in await server.list_tools() if tool.name == name]
    return tool.input_schema


# --- What is made


async def test_the_signature_of_the_job_is_the_tools(server: TaskServer, jobs: Jobs) -> None:
    server.expose(jobs.sell)
    schema = await schema_of(server, "shop_sell")
    assert schema["required"] == ["item"]
    assert list(schema["properties"]) == ["item", "count", "region"]
    (tool,) = await server.list_tools()
    assert tool.description == "Sell something."


async def test_a_bound_jobs_self_is_no_parameter(server: TaskServer, jobs: Jobs) -> None:
    server.expose(jobs.bound)
    assert list((await schema_of(server, "shop_bound"))["properties"]) == ["order"]


async def test_hidden_and_fixed_parameters_are_not_shown(server: TaskServer, jobs: Jobs) -> None:
    server.expose(jobs.sell, name="sell", hide=["count"], fixed={"region": "eu"})
    assert list((await schema_of(server, "sell"))["properties"]) == ["item"]


async def test_a_job_that_is_not_listed_is_not_exposed(server: TaskServer, jobs: Jobs) -> None:
    assert server.expose_all(jobs.app, include=["shop.*"], exclude=["shop.quiet", "shop.positional"]) == [
        "shop_bound",
        "shop_sell",
    ]
    assert {tool.name for tool in await server.list_tools()} == {"shop_bound", "shop_sell"}
    with pytest.raises(ConfigurationError, match="has no job 'celery"):
        server.expose_all(jobs.app, include=["celery.*"])


async def test_an_exposed_job_always_runs_as_a_task_and_no_worker_of_ours_has_it(
    server: TaskServer, jobs: Jobs
) -> None:
    server.expose(jobs.sell, name="sell", task=TaskConfig(queue="shop", expires=5))

    @server.tool(task=True)
    def own() -> None: ...

    tasks = tasks_of(server)
    assert tasks.config("tool", "sell")[1].foreground == "worker"
    assert tasks.queue_names == ("mcp.shop",)
    assert tasks.register_jobs(Celery("worker", set_as_current=False)) == ["mcp.shop.tool.own"]
    server.remove_tool("sell")
    assert ("tool", "sell") not in tasks.components()


async def test_a_server_that_exists_already_can_expose_too(jobs: Jobs) -> None:
    server: MCPServer[Any] = MCPServer("shop")
    tasks = CeleryTasks(celery=jobs.app, settings=Settings.load(namespace="shop"))
    tasks.install(server)
    tasks.expose("shop.sell")
    assert [tool.name for tool in await server.list_tools()] == ["shop_sell"]


def exposed_job(jobs: Jobs, name: str, config: TaskConfig) -> ExposedJob:
    offer = Offer("tool", "", config, None, None, ())
    return ExposedJob(offer, jobs.app, find_job(jobs.app, name), hide=(), fixed={}, terminate=False)


def offered(jobs: Jobs, name: str, *show_errors: str, model: type[BaseModel] | None = None) -> ExposedCatalog:
    """A catalog with one job as ``tool``."""
    offer = Offer("tool", "", TaskConfig(), model, None, show_errors)
    catalog = ExposedCatalog(timeout_seconds=1.0, result_version=LATEST_MODERN_VERSION)
    exposed = ExposedJob(offer, jobs.app, find_job(jobs.app, name), hide=(), fixed={}, terminate=False)
    catalog.add(MCPServerSource(MCPServer("shop")), exposed, None)
    return catalog


def a_call(arguments: JSONObject) -> Submission:
    """A request for ``tool``."""
    snapshot = TaskContextSnapshot(protocol_version="2026-07-28", params={"name": "tool", "arguments": arguments})
    return Submission(
        caller=Caller("alice"), task_type="tool", component="tool", config=TaskConfig(), snapshot=snapshot
    )


@pytest.mark.parametrize(
    ("declared", "for_the_tool", "effective"),
    [
        (60, None, 60),
        (60, 5, 5),
        (None, None, None),
        (LATE, None, LATE),
        (LATE.isoformat(), None, LATE),
    ],
)
async def test_the_plan_says_when_the_job_expires_as_its_message_does(
    jobs: Jobs, declared: Any, for_the_tool: float | None, effective: object
) -> None:
    def perishable() -> None: ...

    jobs.app.task(name="shop.perishable", expires=declared, shared=False)(perishable)
    plan = await exposed_job(jobs, "shop.perishable", TaskConfig(expires=for_the_tool)).plan({}, 1.0)
    assert plan.expires == effective


@pytest.mark.parametrize(
    ("model", "sent"),
    [(None, {"item": "tea"}), (Sale, {"item": "tea", "count": 3, "region": None})],
    ids=["signature", "model"],
)
async def test_the_defaults_of_a_model_are_sent_and_those_of_a_job_are_its_own(
    jobs: Jobs, model: type[BaseModel] | None, sent: dict[str, Any]
) -> None:
    plan = await offered(jobs, "shop.sell", model=model).plan(a_call({"item": "tea"}))
    assert plan is not None
    assert plan.arguments == sent


# --- What a result is


@pytest.mark.parametrize("value", [LONE, [LONE], {LONE: [{"name": LONE}]}])
@pytest.mark.parametrize("job", ["shop.sell", "other.loose"])
def test_every_kind_of_result_can_be_sent(jobs: Jobs, job: str, value: object) -> None:
    """The SDK writes it where nothing is caught."""
    catalog = offered(jobs, job, "ValueError")
    for result in (catalog.returned("tool", value), catalog.raised("tool", "ValueError", [value])):
        assert CallToolResult.model_validate(result).model_dump_json()


def test_the_text_of_an_exception_is_bounded(jobs: Jobs) -> None:
    result = offered(jobs, "shop.sell", "ValueError").raised("tool", "ValueError", ["x" * 10_000])
    assert result["content"][0]["text"] == f"Error executing tool tool: {'x' * MAX_MESSAGE_CHARS}"


# --- What the server itself does


async def test_the_server_follows_what_is_declared_of_an_exposed_tools_tasks(jobs: Jobs) -> None:
    jobs.app.conf.task_always_eager = True
    with receiving() as receiver:
        settings = Settings.load(redis_url="memory://", webhook_secrets=SECRET)
        server = TaskServer("shop", celery=jobs.app, settings=settings)
        server.expose("shop.sell", name="told", task=TaskConfig(webhook=receiver.url, abandon_after=60))
        server.expose("shop.sell", name="rated", task=TaskConfig(rate_limit_per_caller="1/h"))
        server.expose("shop.sell", name="guarded", task=TaskConfig(required_scopes=["sell"]))
        server.expose_canvas(lambda: jobs.sell.s("a"), name="canvas", task=TaskConfig(required_scopes=["sell"]))
        async with Client(server, extensions=[TasksClient()]) as client:
            told = await call_tool_task(client, "told", {"item": "tea"})
            await told.result()
            await eventually(lambda: receiver.received, what="the webhook comes")
            kept = await tasks_of(server).engine().find(Caller(None, None), told.task_id)
            assert kept.abandon_after_ms == 60_000
            await call_tool_task(client, "rated", {"item": "tea"})
            with pytest.raises(MCPError, match=r"\(1 in 3600 s\)"):
                await call_tool_task(client, "rated", {"item": "tea"})
            for name in ("guarded", "canvas"):
                with pytest.raises(MCPError, match="needs a token with the scopes sell"):
                    await client.call_tool(name, {"item": "tea"})
    assert receiver.received[0].told["component"] == "told"


# --- What is refused


@contextmanager
def refused(reason: str) -> Generator[None]:
    with pytest.raises(ConfigurationError) as found:
        yield
    assert reason in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("job", "options", "reason"),
    [
        ("celery.backend_cleanup", {}, "never exposed: it belongs to Celery itself or to mcp_celery"),
        ("mcp.shop.tool.ours", {}, "never exposed: it belongs to Celery itself or to mcp_celery"),
        ("shop.unknown", {}, "knows no such job here; import its module, or describe its arguments"),
        ("shop.quiet", {}, "it stores no result (ignore_result=True)"),
        ("shop.positional", {}, "its parameter 'item' is positional-only"),
        ("shop.sell", {"hide": ["colour"]}, "hide names 'colour', which it does not take"),
        ("shop.sell", {"fixed": {"colour": 1}}, "fixed names 'colour', which it does not take"),
        ("shop.sell", {"hide": ["item"]}, "the hidden parameter 'item' has no default"),
        ("shop.sell", {"arguments": Order, "fixed": {"day": 1}}, "'day' is fixed, and in arguments=… too"),
        ("shop.sell", {"arguments": Order, "hide": ["day"]}, "leave hidden arguments out of arguments=…"),
        ("shop.sell", {"arguments": RootModel[int]}, "has to be a pydantic model with a field for each argument"),
        ("shop.sell", {"arguments": dict}, "with a field for each argument, not <class 'dict'>"),
        ("shop.sell", {"arguments": Unresolved}, "no schema can be made of arguments=Unresolved"),
        ("shop.sell", {"arguments": Calling}, "no schema can be made of arguments=Calling"),
        ("shop.sell", {"task": TaskConfig(rate_limit=1)}, "TaskConfig(rate_limit=…) has no effect; set it where"),
        ("shop.sell", {"task": TaskConfig(foreground="server")}, "it cannot be kept from them"),
        ("shop.sell", {"task": TaskConfig(mode="forbidden")}, "it cannot be kept from them"),
        ("shop.sell", {"name": "taken"}, "the MCP server 'shop' has a tool 'taken' already; give name=…"),
    ],
)
async def test_a_wrong_declaration_is_refused(
    server: TaskServer, job: str, options: dict[str, Any], reason: str
) -> None:
    server.tool("taken")(lambda: None)
    with refused(reason):
        server.expose(job, **options)
    assert [tool.name for tool in await server.list_tools()] == ["taken"]


def test_a_job_that_is_not_of_the_servers_app_is_refused(server: TaskServer, jobs: Jobs) -> None:
    with refused("signatures are exposed with expose_canvas"):
        server.expose(jobs.sell.s("a"))
    with refused("belongs to another Celery app than the server"):
        server.expose(Jobs().sell)
    with refused("expose_all: the Celery app 'shop' is not the server's"):
        server.expose_all(Jobs().app, include=["shop.*"])


def test_a_value_that_is_no_allowlist_is_refused(server: TaskServer, jobs: Jobs) -> None:
    with refused("expected a list of names or patterns"):
        server.expose_all(jobs.app, include="shop.*")
    with refused("expected a list of names or patterns"):
        server.expose_all(jobs.app, include=[])
    with refused("has no job 'x.*'"):
        server.expose_all(jobs.app, include=["shop.s*", "x.*"])


def test_a_canvas_that_cannot_be_exposed_is_refused(server: TaskServer) -> None:
    async def build() -> None: ...

    with refused("a function without a name needs name=…"):
        server.expose_canvas(lambda: None)
    with refused("TaskConfig(queue=…) has no effect; set it on the signatures"):
        server.expose_canvas(build, task=TaskConfig(queue="q"))
    with refused("what makes its jobs must not be `async def`"):
        server.expose_canvas(build)


# --- Values


@pytest.mark.parametrize(
    ("value", "as_json", "as_msgpack"),
    [
        (date(2026, 7, 28), date(2026, 7, 28), "2026-07-28"),
        ([Decimal("1.5")], [Decimal("1.5")], ["1.5"]),
        (Colour.RED, "red", "red"),
        ({"order": Order(day=date(2026, 1, 2))}, {"order": {"day": date(2026, 1, 2), "count": 1}}, None),
        ({1}, [1], [1]),
    ],
)
def test_values_are_sent_as_the_serializer_carries_them(value: object, as_json: object, as_msgpack: object) -> None:
    assert sendable(value, "json") == as_json
    assert sendable(value, "msgpack") == (as_msgpack or {"order": {"day": "2026-01-02", "count": 1}})


@pytest.mark.parametrize(
    "value", [{"__type__": "decimal", "__value__": "1"}, [{"a": {"__value__": 1, "__type__": "x"}}]]
)
def test_a_caller_does_not_choose_the_type_of_an_argument(value: object) -> None:
    with pytest.raises(InvalidRequestError, match="__type__ and __value__"):
        sendable(value, "json")
    assert sendable(value, "msgpack") == value
    assert sendable({"__type__": "a job's own", "more": 1}, "json") == {"__type__": "a job's own", "more": 1}


TAGGED: Final = {"__type__": "decimal", "__value__": "1"}


@pytest.mark.parametrize(
    "value", [Note(TAGGED), deque([TAGGED]), [Note([TAGGED])], Holder(notes=[Note(TAGGED)])], ids=str
)
def test_a_caller_does_not_choose_a_type_within_a_dataclass_either(value: object) -> None:
    with pytest.raises(InvalidRequestError, match="__type__ and __value__"):
        sendable(value, "json")
    assert sendable(Note({"__type__": 1}), "json") == {"content": {"__type__": 1}}


@pytest.mark.parametrize("where", range(6))
async def test_a_caller_does_not_choose_the_type_of_an_argument_of_a_canvas(jobs: Jobs, where: int) -> None:
    sell = jobs.sell

    def build(value: Any) -> Any:
        clean = sell.si("a")
        made: list[Any] = [
            sell.s(value),
            sell.s("a", region=[{"deep": value}]),
            chain(clean, sell.si(value)),
            group(clean, chain(clean, sell.si(value))),
            chord([clean], sell.si(value)),
            sell.map([value]),
        ]
        return made[where]

    canvas = ExposedCanvas(Offer("build", "", TaskConfig(), None, None, ()), jobs.app, build, terminate=False)
    with pytest.raises(InvalidRequestError, match="__type__ and __value__"):
        await canvas.plan({"value": TAGGED}, 1.0)
    assert (await canvas.plan({"value": {"__type__": 1}}, 1.0)).job_name


# --- Several jobs


def names(canvas: Canvas) -> list[tuple[Any, ...]]:
    return [tuple(part.args) for part in canvas.parts]


def test_the_jobs_of_the_result_come_first(jobs: Jobs) -> None:
    add = jobs.add
    canvas = canvas_of(chain(add.s(1), add.s(2), add.s(3)), "t")
    assert (names(canvas), canvas.gathered) == ([(3,), (1,), (2,)], 0)
    canvas = canvas_of(group(add.s(1), chain(add.s(2), add.s(3))), "t")
    assert (names(canvas), canvas.gathered) == ([(1,), (3,), (2,)], 2)
    canvas = canvas_of(chord([add.s(1), add.s(2)], add.s(3)), "t")
    assert (names(canvas), canvas.gathered) == ([(3,), (1,), (2,)], 0)
    canvas = canvas_of(chain(add.s(1), group(add.s(2), add.s(3))), "t")
    assert (names(canvas), canvas.gathered) == ([(2,), (3,), (1,)], 2)
    canvas = canvas_of(add.s(1), "t")
    assert (names(canvas), canvas.gathered) == ([(1,)], 0)
    assert canvas.job_name == "other.add"


def test_a_signature_that_a_caller_keeps_is_not_changed(jobs: Jobs) -> None:
    kept = chain(jobs.add.s(1), chord([jobs.add.s(2)], jobs.add.s(3)), group(jobs.add.s(4), jobs.add.s(5)))
    before = repr(dict(kept))
    for part in canvas_of(kept, "t").parts:
        part.set(task_id="changed")
    assert repr(dict(kept)) == before


def test_a_result_that_is_no_runnable_canvas_is_refused(jobs: Jobs) -> None:
    nested = group(jobs.add.s(1), chain(jobs.add.s(2), group(jobs.add.s(3), jobs.add.s(4))))
    for made, reason in [
        (None, "made no Celery signature, but a NoneType"),
        (group(), "made 0 jobs of these arguments"),
        (nested, "made a group within its last group"),
    ]:
        with pytest.raises(InvalidRequestError, match=reason):
            canvas_of(made, "t")


async def test_an_exceptions_text_is_shown_only_if_it_is_a_tool_error() -> None:
    def build(year: int) -> Any:
        if year:
            raise ToolError("no such year")
        raise RuntimeError("secret")

    exposed = ExposedCanvas(
        Offer("build", "", TaskConfig(), None, None, ()), Celery(set_as_current=False), build, terminate=False
    )
    for year, text in [(1, "no such year"), (0, "Tool 'build' could not make its jobs from these arguments")]:
        with pytest.raises(InvalidRequestError) as found:
            await exposed.plan({"year": year}, 1.0)
        assert str(found.value) == text
