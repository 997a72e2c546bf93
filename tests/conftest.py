"""For every test: which tests run, on which pool of Celery, and beside which others.

Options:
    --quick: Leave out what `make test` leaves out: of the integration tests all but one case of each of those marked
        `smoke`; and each test runs on one pool.
    --all-pools: Run each test on every pool.
    --long: Run the tests marked `long` as well.
    --differential-seed N: Make the tools of the differential tests from this seed.
    --requests N, --fuzz-seed N: How many malformed requests are sent to servers, and which.
    --screenshots FOLDER: Keep the pictures that the browser's tests take.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import zlib
from collections import defaultdict
from collections.abc import Generator, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, cast

import pytest
from hypothesis import HealthCheck, settings

from tests.support.brokers import rabbitmq
from tests.support.deployment import ends_of_logs, forget_ends_of_logs
from tests.support.locks import shared_by_processes
from tests.support.nodes import Pool, short_folder

# Not tests, but what workers import; some are broken on purpose.
collect_ignore_glob = ["support/*", "differential/task_server.py"]

TESTS: Final = Path(__file__).parent
POOLS: Final[Sequence[Pool]] = ("asyncio", "prefork", "threads")
PROCESSES_PER_CORE: Final = 2
"""Tests mostly wait for processes that they started."""
ACROSS_MODULES: Final = frozenset({"deployment", "shared_worker"})
"""Fixtures of a whole folder, or of the session, that start processes."""
SMOKE_ONLY: Final = frozenset({"browser", "differential", "fastmcp", "integration", "peers", "pool"})
"""Folders of which `--quick` runs only the tests marked `smoke`, and of each of those one case."""

# A machine that is slow for a moment is no fault of the code: hypothesis times nothing.
_untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("mcp_celery", _untimed)
settings.register_profile("long", _untimed, max_examples=2_000)
settings.load_profile("mcp_celery")


def pytest_configure() -> None:
    """Let SIGINT interrupt, in this process and in those it starts, however the tests themselves were started.

    A shell that starts them in the background (``pytest &`` in a script) has SIGINT ignored. Every process inherits
    that, and our commands keep to it, as `nohup` wants; a test that presses Ctrl-C would then wait for ever.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mcp_celery")
    group.addoption("--quick", action="store_true", help="what `make test` runs: each module, but not every case")
    group.addoption("--all-pools", action="store_true", help="run each test on every pool of Celery")
    group.addoption("--cluster", action="store_true", help="run tests/contract on a Redis Cluster instead of one Redis")
    group.addoption("--long", action="store_true", help="run the tests marked `long` as well")
    group.addoption("--differential-seed", type=int, metavar="N", help="the seed of the tools of tests/differential")
    group.addoption("--requests", type=int, default=1_000, metavar="N", help="how many malformed requests are sent")
    group.addoption("--fuzz-seed", type=int, default=1, metavar="N", help="which malformed requests are sent")
    group.addoption("--screenshots", type=Path, metavar="FOLDER", help="keep pictures of Flower's pages there")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """What anyio's plugin runs tests marked `anyio` on."""
    return "asyncio"


@pytest.fixture(autouse=True)
def usual_log_levels() -> None:
    """Undo what servers and commands that ran in this process before have done to the levels of loggers."""
    logging.getLogger().setLevel(logging.WARNING)
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if name.startswith("mcp_celery") and isinstance(logger, logging.Logger) and logger.level:
            logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def run_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the processes of this run of the tests share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if hasattr(request.config, "workerinput") else folder


@pytest.fixture(scope="session")
def rabbitmq_url(run_folder: Path) -> Iterator[str]:
    """A RabbitMQ that no test harms; the processes of this run share it, because it takes seconds to start."""
    with short_folder() as folder, shared_by_processes(run_folder, "rabbitmq", lambda: rabbitmq(folder)) as url:
        yield url


@pytest.fixture(scope="session", params=POOLS)
def pool(request: pytest.FixtureRequest) -> Pool:
    """Celery's pool. A test that takes it runs on one, chosen by its id; one marked `each_pool` on each."""
    return request.param


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show with a failing test what its servers and workers have logged."""
    report = yield
    if report.failed:
        report.sections.extend((f"log of {name}", end) for name, end in ends_of_logs().items() if end)
    if report.when == "teardown":
        forget_ends_of_logs()
    return report


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """How many test processes `-n auto` starts, unless xdist's own variable says it."""
    return None if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ else PROCESSES_PER_CORE * (os.cpu_count() or 1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept = list(_selected(config, items))
    for item in kept:
        if group := _group_of(item):
            item.add_marker(pytest.mark.xdist_group(group))
    left_out = set(items).difference(kept)
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    # The longest first: one of five minutes that begins last would run alone.
    items[:] = sorted(kept, key=lambda item: item.get_closest_marker("long") is None)


def _selected(config: pytest.Config, items: Iterable[pytest.Item]) -> Iterator[pytest.Item]:
    quick, every_pool = config.getoption("--quick"), config.getoption("--all-pools")
    variants: dict[Hashable, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("long") and not config.getoption("--long"):
            continue
        if quick and _is_slow(item):
            if item.get_closest_marker("smoke") and not item.get_closest_marker("slow"):
                variants[item.nodeid.partition("[")[0]].append(item)
            continue
        variants[_without_pool(item)].append(item)
    for test, found in variants.items():
        if every_pool or (_depends_on_pool(found[0]) and not quick):
            yield from found
        else:
            # The items come in an order that is another in each run; which of them runs is the same in each.
            found.sort(key=lambda item: item.nodeid)
            yield found[zlib.crc32(repr(test).encode()) % len(found)]


def _is_slow(item: pytest.Item) -> bool:
    if item.get_closest_marker("slow"):
        return True
    return _runs_smoke_only(item.path)


@functools.cache
def _runs_smoke_only(path: Path) -> bool:
    return any(path.is_relative_to(TESTS / folder) for folder in SMOKE_ONLY)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out modules of which `make test` runs no test: each test process compiles and imports what it collects."""
    if not config.getoption("--quick") or collection_path.suffix != ".py" or not _runs_smoke_only(collection_path):
        return None
    return True if "pytest.mark.smoke" not in collection_path.read_text(encoding="utf-8") else None


def _without_pool(item: pytest.Item) -> Hashable:
    """What the variants of a test on several pools have in common."""
    name, _, parameters = item.nodeid.partition("[")
    parts = parameters.removesuffix("]").split("-")
    callspec = getattr(item, "callspec", None)
    if callspec is not None and (pool := callspec.params.get("pool")) in parts:
        parts.remove(pool)
    return name, *parts


def _depends_on_pool(item: pytest.Item) -> bool:
    """Whether a test is marked to run on each pool, or names its pools."""
    if item.get_closest_marker("each_pool"):
        return True
    return any("pool" in (mark.args[0], *mark.args[0]) for mark in item.iter_markers("parametrize"))


def _group_of(item: pytest.Item) -> str | None:
    """Which tests run in one process, because they share what takes long to start; None: this one shares nothing.

    Those are the tests that use the same of the fixtures `ACROSS_MODULES`, and else the tests of a module that share a
    fixture of it, in each case on the same pool.
    """
    # What pytest knows of a test's fixtures is public only while tests are generated, one function at a time.
    definitions = cast("dict[str, Sequence[pytest.FixtureDef[object]]]", cast(Any, item)._fixtureinfo.name2fixturedefs)
    lasting = {name: found[-1] for name, found in definitions.items() if found[-1].scope in ("module", "session")}
    module = item.nodeid.partition("::")[0]
    if any(found.scope == "module" or found.baseid == module for found in lasting.values()):
        base = module
    elif across := ACROSS_MODULES.intersection(lasting):
        base = f"{lasting[min(across)].baseid}:{min(across)}"
    else:
        return None
    return f"{base}-{cast(Any, item).callspec.params['pool']}" if "pool" in lasting else base
