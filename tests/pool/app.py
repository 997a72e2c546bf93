"""A Celery app that knows nothing of MCP, as somebody might have it who only selects the pool."""

import asyncio
import contextvars
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.to_thread
from celery import Celery, Task, current_task, signals
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from kombu.transport.redis import Transport

from mcp_celery.asyncio_pool.pool import at_pool_stop, await_in_job, current_job, in_job

FOLDER = Path(os.environ.get("POOL_TEST_FOLDER", "."))
URL = os.environ.get("POOL_TEST_URL")
QUEUE = os.environ.get("POOL_TEST_QUEUE", "celery")
CONF = dict(line.split("=", 1) for line in os.environ.get("POOL_TEST_CONF", "").splitlines())

if CONF.pop("hub", "yes") == "no":
    # Celery runs without kombu's hub where a transport is not asynchronous, as with SQS, or under gevent.
    Transport.implements = Transport.implements.extend(asynchronous=False)

app = Celery("tests.pool.app", broker=URL, backend=URL)
app.conf.update(
    worker_pool="mcp_celery.asyncio_pool.pool:TaskPool",
    task_default_queue=QUEUE,
    task_track_started=True,
    result_extended=True,
    worker_hijack_root_logger=True,
    broker_connection_retry_on_startup=True,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    # A broker that is asked again soon: what a lost connection leaves unacknowledged comes back within a second.
    broker_transport_options={
        "visibility_timeout": int(CONF.pop("visibility_timeout", "3600")),
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    },
)
app.conf.update({name: int(value) if value.isdigit() else value for name, value in CONF.items()})
app.steps["consumer"].add("mcp_celery.asyncio_pool.elastic:Elastic")

SOON: Any = 0.3
"""A time limit. Celery's stubs know whole seconds only."""
WHO: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")
if TYPE_CHECKING:
    AnyTask = Task[..., Any]
else:
    AnyTask = Task


def note(text: str, job_id: str | None = None) -> None:
    """Tell the test something."""
    with (FOLDER / "notes").open("a") as file:
        file.write(f"{job_id or current_task.request.id} {text}\n")


async def opened(gate: str) -> None:
    """Wait until the test opens a gate."""
    while not (FOLDER / f"gate-{gate}").exists():  # noqa: ASYNC110 - another process opens it
        await asyncio.sleep(0.01)


# What a body may be.


@app.task
async def echo(value: Any) -> Any:
    return value


@app.task
def echo_sync(value: Any) -> Any:
    return value


@app.task(bind=True)
async def identity(self: AnyTask, pauses: list[float]) -> dict[str, list[Any]]:
    """Says who it is whenever it comes to itself: in the body, in a task and a thread that it starts."""
    seen: dict[str, list[Any]] = {"body": [], "task": [], "thread": [], "variable": []}

    def me() -> str | None:
        assert current_task.name == "tests.pool.app.identity"
        assert current_task.request.id == self.request.id
        return self.request.id

    async def child() -> str | None:
        await asyncio.sleep(0)
        return me()

    WHO.set(str(self.request.id))
    for pause in pauses:
        await asyncio.sleep(pause)
        seen["body"].append(me())
        async with asyncio.TaskGroup() as group:
            task = group.create_task(child())
        seen["task"].append(task.result())
        seen["variable"].append(WHO.get())
    seen["thread"].append(await asyncio.to_thread(me))
    return seen


@app.task(bind=True)
def sync_identity(self: AnyTask) -> dict[str, Any]:
    before = WHO.get()
    WHO.set("somebody")
    return {
        "id": self.request.id,
        "current": current_task.request.id,
        "thread": threading.current_thread().name,
        "job": getattr(current_job(), "id", None),
        "in_job": in_job(),
        "variable": before,
        "awaited": await_in_job(echo(7)),
    }


class Base(AnyTask):
    """A base class with a `__call__` of its own, as web frameworks' recipes have it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        WHO.set("called")
        return super().__call__(*args, **kwargs)


@app.task(base=Base, bind=True)
async def with_base(self: AnyTask) -> list[Any]:
    await asyncio.sleep(0)
    return [WHO.get(), self.request.id]


class ClassBased(AnyTask):
    name = "tests.pool.app.class_based"

    async def run(self, value: int) -> int:
        await asyncio.sleep(0)
        return value + 1

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        note(f"before_start in_job={in_job()}")

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        note(f"on_success {await_in_job(echo(retval))}")


app.register_task(ClassBased())


def coroutine_from_a_function(value: int) -> Any:
    """A function that is not `async def` and returns a coroutine, as decorators make them."""
    return echo(value)


wrapped = app.task(name="tests.pool.app.wrapped")(coroutine_from_a_function)


@app.task(bind=True)
async def calls_others(self: AnyTask) -> list[Any]:
    """Other tasks, called like functions, applied eagerly, and asked for inside an asyncio task."""
    direct = await echo("direct")
    eager = echo.apply(("eager",)).get(disable_sync_subtasks=False)
    return [direct, eager, echo_sync("sync"), self.request.id]


@app.task(run_on_loop=True)
def on_loop(seconds: float) -> list[Any]:
    await_in_job(asyncio.sleep(seconds))
    return [threading.current_thread().name, in_job()]


@app.task(run_on_loop=False)
async def in_thread() -> str:
    """The coroutine runs on the loop in any case; what Celery does around it, in a thread."""
    await asyncio.sleep(0.01)
    return threading.current_thread().name


@app.task
async def in_a_child_task() -> str:
    async def child() -> str:
        if in_job():
            return "it can be suspended?"
        try:
            await_in_job(asyncio.sleep(0))
        except RuntimeError as error:
            return str(error)
        return "it was suspended"

    return await asyncio.create_task(child())


# How a body may end.


@app.task
async def fails(text: str) -> None:
    await asyncio.sleep(0)
    raise ValueError(text)


@app.task
async def ignores() -> None:
    await asyncio.sleep(0)
    raise Ignore


@app.task
async def rejects() -> None:
    await asyncio.sleep(0)
    raise Reject("not mine", requeue=False)


@app.task
async def exits() -> None:
    await asyncio.sleep(0)
    raise SystemExit(3)


@app.task
async def child_exits() -> str:
    async def child() -> None:
        raise SystemExit(4)

    task = asyncio.create_task(child())
    await asyncio.wait([task])
    return repr(task.exception())


@app.task
async def cancels_itself() -> None:
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


@app.task(bind=True, max_retries=3)
async def retries(self: AnyTask, times: int) -> int:
    await asyncio.sleep(0)
    note(f"attempt {self.request.retries}")
    if self.request.retries < times:
        raise self.retry(countdown=0)
    return self.request.retries


@app.task(bind=True, autoretry_for=(ConnectionError,), max_retries=3, retry_backoff=False, default_retry_delay=0)
async def autoretries(self: AnyTask, times: int) -> int:
    await asyncio.sleep(0)
    if self.request.retries < times:
        raise ConnectionError("not yet")
    return self.request.retries


@app.task
async def adds(x: int, y: int) -> int:
    await asyncio.sleep(0)
    return x + y


@app.task
def adds_up(numbers: list[int]) -> int:
    return sum(numbers)


# What holds a slot until it is let go, or ended.


async def _held(job_id: str, gate: str) -> str:
    note("begun", job_id)
    try:
        await opened(gate)
    except asyncio.CancelledError:
        note("cancelled", job_id)
        raise
    finally:
        await asyncio.sleep(0.01)
        note("cleaned", job_id)
    return "held"


@app.task(bind=True)
async def hold(self: AnyTask, gate: str) -> str:
    return await _held(str(self.request.id), gate)


@app.task(bind=True)
async def computes(self: AnyTask, gate: str) -> str:
    """Keeps the loop busy, and yet lets others have their turn."""
    note("begun")
    while not (FOLDER / f"gate-{gate}").exists():
        until = time.monotonic() + 0.05
        while time.monotonic() < until:
            pass
        await asyncio.sleep(0)
    return "computed"


@app.task(bind=True)
async def waits_for_a_thread(self: AnyTask, gate: str) -> str:
    """Waits in one of the threads that the tools of the MCP SDK have."""
    note("begun")

    def wait() -> None:
        while not (FOLDER / f"gate-{gate}").exists():
            time.sleep(0.01)

    await anyio.to_thread.run_sync(wait)
    return "waited"


@app.task(bind=True, acks_late=True)
async def hold_late(self: AnyTask, gate: str) -> str:
    return await _held(str(self.request.id), gate)


@app.task(bind=True, time_limit=SOON)
async def hold_limited(self: AnyTask, gate: str) -> str:
    return await _held(str(self.request.id), gate)


@app.task(bind=True)
def hold_sync(self: AnyTask, gate: str) -> str:
    note("begun")
    try:
        while not (FOLDER / f"gate-{gate}").exists():
            time.sleep(0.01)
    except asyncio.CancelledError:
        note("cancelled")
        raise
    finally:
        note("cleaned")
    return "held"


@app.task
def stuck() -> None:
    note("begun")
    time.sleep(120)


@app.task(bind=True, time_limit=SOON)
def hold_sync_limited(self: AnyTask) -> str:
    try:
        while True:
            time.sleep(0.01)
    finally:
        note("cleaned")


@app.task(bind=True)
async def survives(self: AnyTask, gate: str) -> str:
    """Swallows what should end it."""
    note("begun")
    try:
        await opened(gate)
    except asyncio.CancelledError:
        note("swallowed")
    return "survived"


@app.task(bind=True)
async def ignores_its_end(self: AnyTask, gate: str) -> None:
    note("begun")
    while not (FOLDER / f"gate-{gate}").exists():
        try:
            await opened(gate)
        except asyncio.CancelledError:
            note("ignored")


@app.task(bind=True)
async def breaks_down(self: AnyTask, gate: str) -> str:
    note("begun")
    try:
        await opened(gate)
    finally:
        raise ValueError("in the clean-up")


@app.task(soft_time_limit=SOON)
async def soft_uncaught() -> None:
    await asyncio.sleep(60)


@app.task(soft_time_limit=SOON)
async def soft_caught() -> str:
    try:
        await asyncio.sleep(60)
    except SoftTimeLimitExceeded:
        await asyncio.sleep(0.01)
        return "caught"
    return "never"


@app.task(bind=True, soft_time_limit=SOON)
async def soft_in_a_group(self: AnyTask) -> None:
    """The limit passes while it waits for children, which must not go on."""

    async def child() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            note("child ended", self.request.id)

    async with asyncio.TaskGroup() as group:
        group.create_task(child())
        group.create_task(child())


@app.task(soft_time_limit=SOON)
def soft_sync() -> str:
    try:
        while True:
            time.sleep(0.01)
    except SoftTimeLimitExceeded:
        return "caught"


@app.task(rate_limit="5/s")
async def limited() -> float:
    return time.time()


@app.task(bind=True)
async def blocks_the_loop(self: AnyTask, seconds: float) -> None:
    time.sleep(seconds)  # noqa: ASYNC251 - that is the point


@app.task(bind=True)
async def leaves_something(self: AnyTask) -> None:
    """A task of its own that nobody awaits, and a clean-up."""
    job_id = str(self.request.id)

    async def stray() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            note("stray ended", job_id)

    async def close() -> None:
        await asyncio.sleep(0)
        note("cleaned up", job_id)

    _strays.append(asyncio.create_task(stray()))
    at_pool_stop(close)


_strays: list[asyncio.Task[None]] = []


# Signal handlers, which Celery calls inside the job.


@signals.task_prerun.connect
def on_prerun(sender: Any = None, task_id: str = "", **_: Any) -> None:
    if sender.name.endswith("class_based"):
        await_in_job(asyncio.sleep(0.01))
        note(f"prerun in_job={in_job()} current={current_task.request.id == task_id}", task_id)


@signals.task_success.connect
def on_success(sender: Any = None, **_: Any) -> None:
    if sender.name.endswith("class_based"):
        await_in_job(asyncio.sleep(0.01))
        note(f"success current={current_task.request.id == sender.request.id}")
    if sender.name.endswith("in_thread"):
        note(f"success in {threading.current_thread().name}")


@signals.task_failure.connect
def on_failure(sender: Any = None, task_id: str = "", exception: Any = None, **_: Any) -> None:
    note(f"failure {type(exception).__name__} in {threading.current_thread().name}", task_id)


@signals.task_revoked.connect
def on_revoked(
    sender: Any = None, request: Any = None, terminated: bool = False, expired: bool = False, **_: Any
) -> None:
    note(f"revoked terminated={terminated} expired={expired} in {threading.current_thread().name}", request.id)


@signals.worker_process_init.connect
def on_process_init(**_: Any) -> None:
    note("init", "process")


@signals.worker_process_shutdown.connect
def on_process_shutdown(**_: Any) -> None:
    note("shutdown", "process")
