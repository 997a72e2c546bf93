"""A worker's answers to operators: the command ``mcp_celery`` of Celery's remote control.

``mcp-celery doctor`` asks it, and compares the answers with the server's settings. Celery loads this module in workers
only.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Final

from celery import bootsteps
from celery.worker.control import inspect_command

from mcp_celery.common.formats import FORMAT
from mcp_celery.common.installed import PACKAGE
from mcp_celery.engine import now_ms
from mcp_celery.worker.celery.bootsteps import runtimes

COMMAND: Final = "mcp_celery"


@inspect_command(name=COMMAND)
def answer(state: Any, **_: Any) -> dict[str, Any]:
    """The setup of a worker: versions, clock, and of each server the store and the names of the encryption keys.

    The name of a key is made by the key itself and cannot be turned back (``MessageSigner.key_names``).
    """
    app = state.app
    servers: dict[str, Any] = {}
    for runtime in runtimes(app):
        mark = runtime.heart.store_mark
        servers[runtime.namespace] = {
            "store": runtime.store_name,
            "store_mark": None if mark is None else mark.mark_id,
            "keys": list(runtime.signer.key_names),
        }
    return {
        "version": version(PACKAGE),
        "format": FORMAT,
        "now_ms": now_ms(),
        "servers": servers,
        "broker_channel_error_retry": bool(app.conf.broker_channel_error_retry),
    }


class AnswerOperators(bootsteps.Step):
    """A step without work: that a worker loads it makes the command known to Celery."""
