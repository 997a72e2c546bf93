"""Log records as JSON."""

from __future__ import annotations

import json
import logging
import logging.config
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, signals

from mcp_celery import json_logs
from mcp_celery.host_app import install
from mcp_celery.json_logs import JsonFormatter
from mcp_celery.keys import build_task_key, celery_job_id

ID = "q3Xw81abCDEFGHIJKLMNOPQRSTUVWXYZ_-abcdefghi"
LOGGING = Path(__file__).parents[2] / "config" / "logging.json"


def formatted(text: object, *args: object, **attributes: object) -> dict[str, Any]:
    made = logging.LogRecord("somebody", logging.ERROR, "file", 1, text, args, None)
    vars(made).update(attributes)
    line = JsonFormatter().format(made)
    assert "\n" not in line
    return json.loads(line)


def test_a_job_that_is_named_only_in_the_message_is_found() -> None:
    key = build_task_key("app|alice", ID, "resource", "file:///a b")
    job_id = celery_job_id(key)
    for named in (key, job_id):
        found = formatted("could not revoke %s", named)
        assert (found["task_id"], found["component"], found["job_id"]) == (ID, "file:///a b", job_id)
    assert "task_id" not in formatted("nothing in %s", "auth:of:nobody")
    shortened = formatted("%s", celery_job_id(build_task_key("s" * 200, ID, "tool", "u" * 200)))
    assert "task_id" not in shortened


def test_attributes_that_a_library_attaches_are_left_out() -> None:
    found = formatted("said", event_data="secret", data={"id": "1", "args": "secret"})
    assert "secret" not in str(found)
    assert "job_id" not in found


def test_a_traceback_and_a_stack_are_one_line() -> None:
    with pytest.raises(ValueError, match="invalid literal") as raised:
        int("\x1b[2J")
    found = formatted("failed", exc_info=(raised.type, raised.value, raised.tb), stack_info="Stack:\n  here")
    assert "ValueError: invalid literal" in found["exception"]
    assert found["stack"] == "Stack:\n  here"


def test_packages_with_handlers_of_their_own_leave_their_records_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_logs, "_WITH_HANDLERS", ("of a package",))
    logger = logging.getLogger("of a package")
    logger.addHandler(logging.StreamHandler())
    logger.propagate = False
    json_logs.json_formatter()
    assert (logger.handlers, logger.propagate) == ([], True)


@pytest.mark.parametrize(("value", "is_json"), [("json", True), ("text", False)])
def test_the_logging_configuration_of_a_deployment_follows_the_setting(
    monkeypatch: pytest.MonkeyPatch, value: str, is_json: bool
) -> None:
    monkeypatch.setenv("MCP_CELERY_LOG_FORMAT", value)
    config = json.loads(LOGGING.read_text())
    made = logging.config.DictConfigurator(config).configure_formatter(config["formatters"]["key_value"])
    line = made.format(logging.LogRecord("somebody", logging.INFO, "file", 1, "seen", None, None))
    assert line.startswith("{" if is_json else "time=")


@pytest.mark.parametrize(("value", "is_json"), [("json", True), (None, False)])
def test_a_hosts_log_is_json_only_where_a_setting_says_so(
    monkeypatch: pytest.MonkeyPatch, value: str | None, is_json: bool
) -> None:
    if value is not None:
        monkeypatch.setenv("MCP_CELERY_LOG_FORMAT", value)
    install(Celery("host", set_as_current=False), "nowhere:server")
    logger = logging.getLogger("of the host")
    logger.addHandler(handler := logging.StreamHandler())
    signals.after_setup_logger.send(sender=None, logger=logger)
    logger.removeHandler(handler)
    assert isinstance(handler.formatter, JsonFormatter) is is_json
