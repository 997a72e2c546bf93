"""Reading several results: what one of them is, or how long it takes, is none of the others' business."""

from __future__ import annotations

import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final

import pytest
from celery import Celery
from celery.backends.base import KeyValueStoreBackend

from mcp_celery.broker.results import CeleryResults
from mcp_celery.engine import UNREADABLE, StoredResult

pytestmark = pytest.mark.anyio

TIMEOUT_SECONDS: Final = 1.0
"""Of a read that never ends."""


class OneByOne(KeyValueStoreBackend):
    """A backend in memory that gives one result at a time."""

    kept: Any = None
    hangs: Any = None

    def get(self, key: Any) -> Any:
        text = key.decode()
        if text.endswith("hangs"):
            self.hangs.wait()
        if text.endswith("broken"):
            raise AttributeError("'NoneType' object has no attribute 'read'")  # as drivers do that lost a connection
        if text.endswith("classless"):
            raise AttributeError("Can't get attribute 'Order' on <module 'shop'>")
        return self.kept.get(text)

    def set(self, key: Any, value: Any) -> None:
        self.kept[key.decode()] = value


def an_app(backend: Any, **settings: Any) -> Celery:
    app = Celery("results", backend=backend, set_as_current=False)
    app.conf.update(settings)
    return app


@pytest.fixture
def results() -> Generator[CeleryResults]:
    app = an_app(OneByOne, result_backend_thread_safe=True)
    backend: Any = app.backend
    backend.kept, backend.hangs = {}, threading.Event()
    backend.store_result("good", {"sum": 3}, "SUCCESS")
    reading = CeleryResults(app, timeout_seconds=TIMEOUT_SECONDS)
    yield reading
    backend.hangs.set()
    reading.close()


@pytest.mark.parametrize("kind", ["together", "one by one"])
async def test_an_unreadable_result_is_distinguished_from_a_missing_one(kind: str, tmp_path: Path) -> None:
    url = "cache+memory://" if kind == "together" else f"file://{tmp_path}"
    theirs: Any = an_app(url, result_serializer="pickle").backend
    theirs.store_result("poison", {"when": Path}, "SUCCESS")
    ours = an_app(url)
    backend: Any = ours.backend
    backend.store_result("good", {"sum": 3}, "SUCCESS")
    reading = CeleryResults(ours, timeout_seconds=10)
    try:
        found = await reading.read_many(["none", "poison", "good"])
    finally:
        reading.close()
    assert found == {"none": None, "poison": UNREADABLE, "good": StoredResult("SUCCESS", {"sum": 3})}


@pytest.mark.parametrize("kind", ["together", "one by one"])
async def test_a_state_of_a_running_job_is_read_without_its_value(kind: str, tmp_path: Path) -> None:
    app = an_app("cache+memory://" if kind == "together" else f"file://{tmp_path}")
    backend: Any = app.backend
    for state in ("PROGRESS", "SUCCESS"):
        backend.store_result(state.lower(), {"__type__": "no type of kombu's", "__value__": 1}, state)
    reading = CeleryResults(app, timeout_seconds=10)
    try:
        found = await reading.read_many(["progress", "success"])
    finally:
        reading.close()
    assert found == {"progress": StoredResult("PROGRESS", None), "success": UNREADABLE}


async def test_a_class_that_the_server_lacks_makes_a_result_unreadable(results: CeleryResults) -> None:
    found = await results.read_many(["classless", "good"])
    assert found == {"classless": UNREADABLE, "good": StoredResult("SUCCESS", {"sum": 3})}


async def test_an_error_of_the_backend_says_nothing_of_a_result(results: CeleryResults) -> None:
    assert await results.read_many(["broken", "good"]) == {"good": StoredResult("SUCCESS", {"sum": 3})}
    assert await results.read_many(["broken"]) == {}


async def test_results_read_before_a_backend_hangs_are_returned(results: CeleryResults) -> None:
    found = await results.read_many(["good", "none", "hangs", "never asked for"])
    assert found == {"good": StoredResult("SUCCESS", {"sum": 3}), "none": None}
