"""What a component declares is checked when the server is written, and so are functions that no worker can run."""

import functools
from collections.abc import AsyncGenerator, Callable, Generator
from datetime import timedelta
from typing import Any

import pytest

from mcp_celery.config import TaskConfig, TaskMeta
from mcp_celery.errors import ConfigurationError


def sync_tool() -> str:
    return "done"


async def async_tool() -> str:
    return "done"


def generator_tool() -> Generator[str]:
    yield "done"


async def async_generator_tool() -> AsyncGenerator[str]:
    yield "done"


class SyncCallable:
    def __call__(self) -> str:
        return "done"


class AsyncCallable:
    async def __call__(self) -> str:
        return "done"

    async def method(self) -> str:
        return "done"


class GeneratorCallable:
    def __call__(self) -> Generator[str]:
        yield "done"


class TestValues:
    @pytest.mark.parametrize(
        ("values", "named"),
        [
            ({"mode": "sometimes"}, "mode='sometimes'"),
            ({"ttl": 0}, "ttl=0"),
            ({"ttl": -1}, "ttl=-1"),
            ({"ttl": timedelta(0)}, "ttl="),
            ({"poll_interval": 0}, "poll_interval=0"),
            ({"poll_interval": timedelta(seconds=-1)}, "poll_interval="),
            ({"poll_interval": timedelta(microseconds=1)}, "at least 1 ms"),
            ({"time_limit": 0}, "time_limit=0"),
            ({"soft_time_limit": -0.5}, "soft_time_limit=-0.5"),
            ({"time_limit": float("nan")}, "time_limit=nan"),
            ({"time_limit": 5, "soft_time_limit": 6}, "soft_time_limit must not be above time_limit"),
            ({"priority": -1}, "priority=-1"),
            ({"priority": 256}, "priority=256"),
            ({"queue": ""}, "queue=''"),
            ({"rate_limit": "10/fortnight"}, "rate_limit='10/fortnight'"),
            ({"rate_limit": -1}, "rate_limit=-1"),
            ({"rate_limit_per_caller": "10/fortnight"}, "rate_limit_per_caller='10/fortnight'"),
            ({"rate_limit_per_caller": "0/m"}, "rate_limit_per_caller='0/m'"),
            ({"rate_limit_per_caller": 10_001}, "rate_limit_per_caller=10001"),
            ({"max_running": 0}, "max_running=0"),
            ({"max_running": 1.5}, "max_running=1.5"),
            ({"max_running_per_caller": -1}, "max_running_per_caller=-1"),
            ({"max_running_key": "tenant"}, "max_running_key=…): needs max_running"),
            ({"max_running": 1, "max_running_key": ""}, "max_running_key=''"),
            ({"expires": 0}, "expires=0"),
            ({"ask": "after"}, "ask='after'"),
            ({"version": ""}, "version=''"),
            ({"version": "1-2"}, "version='1-2'"),
            ({"version": "x" * 41}, "version='xxx"),
            ({"foreground": "client"}, "foreground='client'"),
            ({"input_timeout": 0}, "input_timeout=0"),
            ({"max_retries": -1}, "max_retries=-1"),
            ({"retry_backoff": -2}, "retry_backoff=-2"),
            ({"retry_backoff_max": -2}, "retry_backoff_max=-2"),
            ({"autoretry_for": ("ValueError",)}, "autoretry_for"),
            ({"autoretry_for": (KeyboardInterrupt,)}, "autoretry_for"),
            ({"autoretry_for": (OSError,), "max_retries": None}, "set retry_backoff=True"),
            (
                {"autoretry_for": (OSError,), "max_retries": None, "retry_backoff": 1, "retry_backoff_max": 0},
                "retry_backoff_max above 0",
            ),
        ],
    )
    def test_a_value_out_of_range_is_refused_by_name(self, values: dict[str, Any], named: str) -> None:
        with pytest.raises(ConfigurationError, match="TaskConfig") as refusal:
            TaskConfig(**values)
        assert named in str(refusal.value)

    def test_the_limits_themselves_are_granted(self) -> None:
        TaskConfig(ttl=1, poll_interval=1, priority=0, time_limit=5, soft_time_limit=5)
        TaskConfig(priority=255)
        TaskConfig(max_retries=0, retry_backoff=0, retry_backoff_max=0)
        TaskConfig(max_retries=None)
        TaskConfig(autoretry_for=(OSError,), max_retries=None, retry_backoff=True)
        TaskConfig(autoretry_for=(OSError,))
        TaskConfig(version="2026.7_b+" + "1" * 31)
        for rate in (5, 0.5, "10", "10/s", "1.5/m", "100/h"):
            TaskConfig(rate_limit=rate)

    @pytest.mark.parametrize(("declared", "milliseconds"), [(None, None), (1500, 1500), (timedelta(seconds=1.5), 1500)])
    def test_durations_are_timedeltas_or_milliseconds(
        self, declared: timedelta | int | None, milliseconds: int | None
    ) -> None:
        config = TaskConfig(ttl=declared, poll_interval=declared)
        assert (config.ttl_ms, config.poll_interval_ms) == (milliseconds, milliseconds)

    @pytest.mark.parametrize(("mode", "supports"), [("forbidden", False), ("optional", True), ("required", True)])
    def test_only_forbidden_components_are_never_tasks(self, mode: Any, supports: bool) -> None:
        assert TaskConfig(mode=mode).supports_tasks() is supports

    def test_a_bool_is_accepted_as_a_mode(self) -> None:
        assert TaskConfig.from_bool(True) == TaskConfig(mode="optional")
        assert TaskConfig.from_bool(False) == TaskConfig(mode="forbidden")

    def test_a_request_asks_nothing_by_default(self) -> None:
        assert TaskMeta() == TaskMeta(ttl=None, fn_key=None)

    def test_a_request_asks_for_a_time_and_a_job(self) -> None:
        asked = TaskMeta(60_000, "mcp.reports.tool.train")
        assert (asked.ttl, asked.fn_key) == (60_000, "mcp.reports.tool.train")


class TestFunctions:
    @pytest.mark.parametrize(
        "fn",
        [
            sync_tool,
            async_tool,
            SyncCallable(),
            AsyncCallable(),
            AsyncCallable().method,
            functools.partial(sync_tool),
            functools.partial(functools.partial(async_tool)),
        ],
        ids=["function", "coroutine function", "object", "async object", "method", "partial", "partial of a partial"],
    )
    def test_sync_and_async_functions_are_accepted(self, fn: Callable[..., Any]) -> None:
        TaskConfig().validate_function(fn, "my_tool")

    @pytest.mark.parametrize(
        "fn",
        [generator_tool, async_generator_tool, functools.partial(generator_tool), GeneratorCallable()],
        ids=["generator", "async generator", "partial", "callable object"],
    )
    def test_generators_are_refused_by_name(self, fn: Callable[..., Any]) -> None:
        with pytest.raises(ConfigurationError, match=r"'my_tool'.*generator"):
            TaskConfig().validate_function(fn, "my_tool")

    def test_a_refusal_is_a_value_error(self) -> None:
        with pytest.raises(ValueError, match="my_tool"):
            TaskConfig(mode="required").validate_function(generator_tool, "my_tool")

    def test_a_lambda_needs_a_name(self) -> None:
        TaskConfig().validate_function(lambda: None, "named")
        for name in ("", "<lambda>"):
            with pytest.raises(ConfigurationError, match="name"):
                TaskConfig().validate_function(lambda: None, name)

    @pytest.mark.parametrize(
        "fn", [sync_tool, SyncCallable(), functools.partial(sync_tool)], ids=["def", "obj", "partial"]
    )
    def test_sync_functions_can_be_refused(self, fn: Callable[..., Any]) -> None:
        with pytest.raises(ConfigurationError, match=r"'my_tool'.*async def"):
            TaskConfig().validate_function(fn, "my_tool", async_only=True)

    @pytest.mark.parametrize(
        "fn", [async_tool, AsyncCallable(), functools.partial(async_tool)], ids=["def", "obj", "partial"]
    )
    def test_async_functions_pass_where_sync_ones_are_refused(self, fn: Callable[..., Any]) -> None:
        TaskConfig().validate_function(fn, "my_tool", async_only=True)

    def test_a_component_without_tasks_may_be_any_function(self) -> None:
        TaskConfig.from_bool(False).validate_function(generator_tool, "my_tool")
