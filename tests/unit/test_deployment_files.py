"""Procfile and config/: complete, readable by the programs they are for, and true to the code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tornado.options

from mcp_celery.keys import Hidden, build_task_key, celery_job_id
from mcp_celery.settings import ENV_PREFIX, Settings
from tests.support.programs import forked_command

environ: Any = import_module("honcho.environ")  # which says nothing of its types
tasks_page: Any = import_module("flower.views.tasks")  # which says nothing of them either
ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "config"
ENV = (CONFIG / "env.example").read_text(encoding="utf-8")


class TestEnvExample:
    def test_the_example_file_has_every_variable_with_its_default(self) -> None:
        defaults = {
            ENV_PREFIX + name.upper(): "" if field.default is None else str(field.default)
            for name, field in Settings.model_fields.items()
        }
        shown = dict(re.findall(rf"^#?({ENV_PREFIX}\w+)=(.*)$", ENV, re.MULTILINE))
        assert set(shown) == set(defaults)
        # The one that has to be set, with the server of this checkout.
        assert shown == {**defaults, "MCP_CELERY_SERVER": "workers.demo:server"}

    def test_each_variable_has_its_reason(self) -> None:
        blocks = [block for block in ENV.split("\n\n") if re.search(r"^#?[A-Z_]+=", block, re.MULTILINE)]
        assert [block for block in blocks if not re.match(r"# \w", block)] == []

    def test_honcho_reads_the_example_file(self) -> None:
        assert environ.parse(ENV) == {
            "MCP_CELERY_SERVER": "workers.demo:server",
            "CELERY_CONFIG_MODULE": "config.celeryconfig",
        }


def test_the_procfile_has_its_four_processes() -> None:
    procfile = environ.parse_procfile((ROOT / "Procfile").read_text(encoding="utf-8"))
    assert list(procfile.processes) == ["store", "web", "worker", "flower"]


@pytest.fixture(scope="module")
def celery_conf() -> dict[str, Any]:
    """Settings of the app that `celery -A mcp_celery` runs, with ``CELERY_CONFIG_MODULE``."""
    code = """
import json
from mcp_celery.celery import app
names = "task_time_limit broker_url result_backend worker_prefetch_multiplier worker_pool accept_content".split()
print(json.dumps({name: app.conf[name] for name in names}))
"""
    env = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    env |= {"CELERY_CONFIG_MODULE": "config.celeryconfig", "MCP_CELERY_REDIS_URL": "redis://somewhere:1/2"}
    argv = [*forked_command("tests.support.run_text"), code]
    done = subprocess.run(argv, env=env, cwd=ROOT, capture_output=True, check=True)
    return json.loads(done.stdout)


class TestCeleryConfig:
    def test_values_of_the_configuration_are_in_force(self, celery_conf: dict[str, Any]) -> None:
        assert celery_conf["task_time_limit"] == 3600

    def test_settings_that_the_configuration_leaves_out_keep_our_defaults(self, celery_conf: dict[str, Any]) -> None:
        assert celery_conf["broker_url"] == celery_conf["result_backend"] == "redis://somewhere:1/2"
        assert celery_conf["worker_prefetch_multiplier"] == 1
        assert celery_conf["worker_pool"] == "mcp_celery.asyncio_pool.pool:TaskPool"
        assert celery_conf["accept_content"] == ["json"]


def test_the_logging_configuration_can_be_applied(capfd: pytest.CaptureFixture[str]) -> None:
    code = """
import json, logging.config, pathlib, sys
logging.config.dictConfig(json.loads(pathlib.Path(sys.argv[1]).read_text()))
logging.getLogger("mcp_celery.engine").info("seen")
logging.getLogger("somebody.else").info("not seen")
"""
    subprocess.run([sys.executable, "-c", code, str(CONFIG / "logging.json")], check=True)
    shown = capfd.readouterr()
    assert re.fullmatch(r"time=\S+ level=INFO logger=mcp_celery\.engine process=\d+ message=seen\n", shown.err), (
        shown.err
    )
    assert shown.out == ""


def test_the_logging_configuration_gives_its_reasons() -> None:
    config = json.loads((CONFIG / "logging.json").read_text(encoding="utf-8"))
    assert {*config["loggers"], "root", "disable_existing_loggers"} - {"uvicorn"} <= set(config["why"])
    assert {one["level"] for one in config["loggers"].values()} <= {"INFO", "WARNING"}


def test_flower_has_the_columns_that_the_page_needs() -> None:
    if not hasattr(tasks_page, "visible_task_columns"):
        pytest.skip("this Flower keeps the names of its columns in its page")
    options = tornado.options.OptionParser()
    options.define("tasks_columns")
    options.parse_config_file(str(CONFIG / "flowerconfig.py"), final=False)
    shown = [name for name, _ in tasks_page.visible_task_columns(options.tasks_columns)]
    assert shown == options.tasks_columns.split(","), "Flower knows each of them"
    assert {"name", "args", "state", "result"} <= set(shown)


class TestFormatTask:
    """How Flower shows a job."""

    @pytest.fixture
    def shown(self) -> Callable[[str], str]:
        """What stands in the column of arguments for a job id."""
        options = tornado.options.OptionParser()
        options.define("format_task", type=type(lambda: None))
        options.parse_config_file(str(CONFIG / "flowerconfig.py"), final=False)

        def show(job_id: str) -> str:
            task = SimpleNamespace(uuid=job_id, args="as it was")
            assert options.format_task(task) is task
            assert task.uuid == job_id
            return task.args

        return show

    @pytest.mark.parametrize(
        ("scope", "component", "text"),
        [
            (None, "build", "anonymous · tool build"),
            ("app|https://id.example/alice", "build", "app|https://id.example/alice · tool build"),
            ("a~b%c", "ü#?", "a~b%c · tool ü#?"),
        ],
    )
    def test_scope_and_component_are_readable(
        self, shown: Callable[[str], str], scope: str | None, component: str, text: str
    ) -> None:
        key = build_task_key(scope, "id", "tool", component)
        assert shown(celery_job_id(key)) == shown(celery_job_id(key, leg=3)) == text

    def test_of_what_was_too_long_the_digest_is_shown(self, shown: Callable[[str], str]) -> None:
        key = build_task_key("s" * 200, "id", "resource", "u" * 200)
        assert re.fullmatch(r"digest-[0-9a-f]{32} · resource digest-[0-9a-f]{32}", shown(celery_job_id(key)))
        assert shown(celery_job_id(build_task_key("s" * 200, "id", "tool", "build"))).endswith(" · tool build")

    def test_where_an_id_is_hidden_the_rest_is_readable(self, shown: Callable[[str], str]) -> None:
        assert (
            shown(celery_job_id(build_task_key(None, "id", "tool", "x"), hidden=Hidden.TASK_ID)) == "anonymous · tool x"
        )

    def test_other_peoples_jobs_stay_as_they_are(self, shown: Callable[[str], str]) -> None:
        assert shown("4c4b0ba4-0d8a-4a2a-8e56-0c6e3bd1c2f5") == "as it was"
