"""The app of people who bring none: whatever configures Celery wins over each of our defaults."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, cast

import pytest

from mcp_celery.default_app import configuration
from tests.support.programs import forked_command

SAID: Final[dict[str, Any]] = {
    "broker_url": "amqp://said//",
    "result_backend": "redis://said/3",
    "result_expires": 60,
    "task_serializer": "yaml",
    "result_serializer": "yaml",
    "accept_content": ["json", "yaml"],
    "worker_prefetch_multiplier": 7,
    "worker_pool": "threads",
    "worker_send_task_events": False,
    "broker_connection_retry_on_startup": False,
    "worker_consumer": "celery.worker.consumer:Consumer",
    "broker_channel_error_retry": False,
    "worker_enable_prefetch_count_reduction": True,
    "worker_cancel_long_running_tasks_on_connection_loss": True,
    "worker_redirect_stdouts": True,
    "redis_socket_timeout": 3.0,
    "redis_socket_connect_timeout": 4.0,
    "task_default_queue": "said",
}
"""Another value for each of our defaults."""
OLD_NAMES: Final = {
    "broker_url": "BROKER_URL",
    "result_backend": "CELERY_RESULT_BACKEND",
    "result_expires": "CELERY_TASK_RESULT_EXPIRES",
    "worker_prefetch_multiplier": "CELERYD_PREFETCH_MULTIPLIER",
    "worker_pool": "CELERYD_POOL",
    "task_default_queue": "CELERY_DEFAULT_QUEUE",
}

NAMESPACED: Final = """
import settings_of_mine as s
said = {f"MY_{name}".upper(): getattr(s, name) for name in dir(s)}
default_app.config_from_object(said, namespace="MY", force=True)
"""
LOADED_FIRST: Final = "default_app.conf.worker_pool\n"


def held(folder: Path, configure: str = "", names: Iterable[str] = SAID, **env: str) -> dict[str, Any]:
    """What the app holds for settings, by default for each of our defaults, in a process of its own."""
    program = (
        "import json, sys\n"
        f"sys.path.insert(0, {str(folder)!r})\n"
        "from mcp_celery.default_app import default_app\n"
        f"{configure}\n"
        f"print(json.dumps({{name: default_app.conf[name] for name in {list(names)!r}}}))"
    )
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("MCP_CELERY_", "CELERY_"))}
    argv = [*forked_command("tests.support.run_text"), program]
    ran = subprocess.run(argv, env={**bare, **env}, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return cast("dict[str, Any]", json.loads(ran.stdout))


@pytest.fixture
def module(tmp_path: Path) -> Path:
    """A folder with a configuration module that says everything."""
    (tmp_path / "settings_of_mine.py").write_text("\n".join(f"{name} = {value!r}" for name, value in SAID.items()))
    return tmp_path


def test_the_tests_configure_another_value_for_each_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCP_CELERY_QUEUE", "jobs")
    assert configuration().keys() == SAID.keys()
    assert [name for name, value in configuration().items() if value == SAID[name]] == []


def test_a_configuration_module_overrides_our_defaults(module: Path) -> None:
    assert held(module, CELERY_CONFIG_MODULE="settings_of_mine", MCP_CELERY_QUEUE="jobs") == SAID


@pytest.mark.parametrize("before", ["", LOADED_FIRST])
@pytest.mark.parametrize(
    "configure",
    [
        "default_app.config_from_object('settings_of_mine', force=True)",
        "import os; os.environ['WHERE'] = 'settings_of_mine'; default_app.config_from_envvar('WHERE', force=True)",
        "import settings_of_mine as s; default_app.conf.update({k: getattr(s, k) for k in dir(s) if k[0] != '_'})",
        NAMESPACED,
    ],
    ids=["object", "envvar", "update", "namespace"],
)
def test_configuration_in_code_overrides_our_defaults(module: Path, before: str, configure: str) -> None:
    assert held(module, before + configure) == SAID


def test_old_names_of_settings_override_our_defaults_too(tmp_path: Path) -> None:
    text = "\n".join(f"{old} = {SAID[name]!r}" for name, old in OLD_NAMES.items())
    (tmp_path / "old_settings.py").write_text(text)
    found = held(tmp_path, CELERY_CONFIG_MODULE="old_settings")
    assert {name: found[name] for name in OLD_NAMES} == {name: SAID[name] for name in OLD_NAMES}
    assert found["worker_consumer"] == configuration()["worker_consumer"]


def test_a_setting_gives_workers_kombus_own_transport(tmp_path: Path) -> None:
    default, kombus = (
        held(tmp_path, names=["worker_consumer"], **env)["worker_consumer"]
        for env in ({}, {"MCP_CELERY_WORKER_TRANSPORT": "kombu"})
    )
    assert default == "mcp_celery.worker.batched_consumer:Consumer"
    assert kombus == "mcp_celery.worker.consumer:Consumer"


@pytest.mark.parametrize("before", ["", LOADED_FIRST])
def test_a_setting_that_is_not_configured_keeps_our_default(tmp_path: Path, before: str) -> None:
    (tmp_path / "brief.py").write_text("worker_prefetch_multiplier = 7")
    found = held(tmp_path, before + "default_app.config_from_object('brief', force=True)", MCP_CELERY_QUEUE="jobs")
    ours = json.loads(json.dumps(configuration() | {"task_default_queue": "jobs"}))
    assert found == ours | {"worker_prefetch_multiplier": 7}


def test_celerys_environment_variables_override_our_defaults(tmp_path: Path) -> None:
    seen = (
        "default_app.conf.update(broker_url=default_app.conf.broker_url)"  # a property of Celery's reads the variable
    )
    assert held(tmp_path, seen, CELERY_BROKER_URL="amqp://env//")["broker_url"] == "amqp://env//"


BROKER: Final = ("broker_url", "broker_transport_options", "broker_use_ssl")
OUR_REDIS: Final = {"MCP_CELERY_REDIS_URL": "rediss://ours/0?socket_timeout=3&max_connections=5"}
OUR_TLS: Final = {"ssl_cert_reqs": "required", "ssl_check_hostname": True}


def broker(folder: Path, configure: str = "", **env: str) -> list[Any]:
    return list(held(folder, configure, BROKER, **OUR_REDIS, **env).values())


def test_options_of_the_url_are_options_of_the_broker(tmp_path: Path) -> None:
    assert broker(tmp_path) == ["rediss://ours:6379/0", {"socket_timeout": 3.0}, OUR_TLS]


@pytest.mark.parametrize("name", ["broker_url", "broker_read_url", "broker_write_url"])
@pytest.mark.parametrize("how", ["module", "variable"])
def test_another_broker_gets_no_options_of_our_url(tmp_path: Path, name: str, how: str) -> None:
    (tmp_path / "elsewhere.py").write_text(f"{name} = 'redis://said/0'" if how == "module" else "")
    variable = {f"CELERY_{name.upper()}": "redis://said/0"} if how == "variable" else {}
    found = broker(tmp_path, CELERY_CONFIG_MODULE="elsewhere", **variable)
    assert found[1:] == [{}, False]


@pytest.mark.parametrize("before", ["", LOADED_FIRST])
@pytest.mark.parametrize("how", ["module", "object", "update"])
def test_configured_options_of_the_broker_are_merged_and_override_ours(tmp_path: Path, before: str, how: str) -> None:
    said = {"visibility_timeout": 7, "socket_timeout": 9.0}
    (tmp_path / "options.py").write_text(f"broker_transport_options = {said!r}")
    found = {
        "module": lambda: broker(tmp_path, before, CELERY_CONFIG_MODULE="options"),
        "object": lambda: broker(tmp_path, before + "default_app.config_from_object('options', force=True)"),
        "update": lambda: broker(tmp_path, f"default_app.conf.update(broker_transport_options={said!r})\n" + before),
    }[how]()
    assert found == ["rediss://ours:6379/0", said, OUR_TLS]


@pytest.mark.parametrize(
    ("said", "env", "ours"),
    [
        ("", {}, True),
        ("result_backend = 'redis://said/0'", {}, False),
        ("", {"CELERY_RESULT_BACKEND": "redis://a/0"}, False),
    ],
)
def test_another_result_backend_gets_no_options_of_our_url(
    tmp_path: Path, said: str, env: dict[str, str], ours: bool
) -> None:
    (tmp_path / "elsewhere.py").write_text(said)
    url = "rediss://ours/0?ssl_password=letmein"
    shown = "default_app.conf.result_expires = bool(default_app.conf.redis_backend_use_ssl)"
    found = held(tmp_path, shown, CELERY_CONFIG_MODULE="elsewhere", MCP_CELERY_REDIS_URL=url, **env)
    assert found["result_expires"] == ours


def test_options_that_are_not_configured_stay(tmp_path: Path) -> None:
    (tmp_path / "options.py").write_text("broker_transport_options = {'visibility_timeout': 7}")
    found = broker(tmp_path, CELERY_CONFIG_MODULE="options")
    assert found[1] == {"visibility_timeout": 7, "socket_timeout": 3.0}


@pytest.mark.parametrize(("said", "name"), [("", "main"), ("result_backend = 'redis://said/0'", None)])
def test_options_of_the_result_backend_join_the_name_of_our_master(tmp_path: Path, said: str, name: str | None) -> None:
    (tmp_path / "options.py").write_text(f"{said}\nresult_backend_transport_options = {{'global_keyprefix': 'app:'}}")
    show = (
        "default_app.conf.update(found={one: default_app.conf.result_backend_transport_options.get(one)"
        " for one in ('master_name', 'global_keyprefix')})"
    )
    found = held(
        tmp_path,
        show,
        ("found",),
        CELERY_CONFIG_MODULE="options",
        MCP_CELERY_REDIS_URL="sentinel://one.example/main",
    )
    assert found["found"] == {"master_name": name, "global_keyprefix": "app:"}


@pytest.mark.parametrize("said", [None, "said"])
def test_a_servers_jobs_go_where_the_configuration_says(tmp_path: Path, said: str | None) -> None:
    (tmp_path / "queue_settings.py").write_text("" if said is None else f"task_default_queue = {said!r}")
    program = (
        f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n"
        "from mcp_celery import TaskServer\n"
        "from mcp_celery.server.task_server import tasks_of\n"
        "print(tasks_of(TaskServer('Shop')).queue_name)"
    )
    env = {**os.environ, "CELERY_CONFIG_MODULE": "queue_settings"}
    argv = [*forked_command("tests.support.run_text"), program]
    ran = subprocess.run(argv, env=env, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == (said or "mcp.shop")
