"""Flower as an operator has it: a store, a worker, a server, Flower, and a real browser in front."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, cast

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from mcp_celery.cli.options import POOLS
from mcp_celery.embedded import EmbeddedStore
from tests.support.deployment import Deployment, deployed, process, wait_until
from tests.support.flower import Flower, run_flower
from tests.support.nodes import short_folder
from tests.support.waiting import eventually_sync

NAMESPACE: Final = "reports"
MODULE: Final = "tests.browser.reports:server"
PATIENCE_SECONDS: Final = 60.0
LOAD_AGAIN_SECONDS: Final = 3.0
HELD_JOBS: Final = 8
"""How many the worker takes from the broker, the one that it runs among them."""
BROWSERS: Final = ("chromium", "chromium-browser", "google-chrome")
FLAGS: Final = (
    "--headless",
    "--no-sandbox",  # which a container's root cannot have
    "--disable-gpu",
    "--disable-dev-shm-usage",  # a container's is small
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,720",
)


class Page:
    """What a browser shows of a Flower."""

    def __init__(self, driver: webdriver.Chrome, flower: Flower) -> None:
        self.driver = driver
        self._flower = flower
        # Once with the password, which the browser then keeps; at a page without the list, which would remember, at a
        # moment of its own choice, what was searched for last.
        driver.get(f"http://{flower.operator}@127.0.0.1:{flower.port}/workers")
        driver.execute_script("localStorage.clear()")

    def open(self, path: str) -> None:
        self.driver.get(f"{self._flower.url}{path}")

    @property
    def source(self) -> str:
        return self.driver.page_source

    def find(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def until(self, what: str, selector: str) -> WebElement:
        """Wait for an element. Flower learns of jobs by and by, so the page is loaded anew every few moments."""

        def shown() -> WebElement | None:
            return next(iter(self.find(selector)), None)

        def found() -> WebElement | None:
            with suppress(TimeoutException):
                return WebDriverWait(self.driver, LOAD_AGAIN_SECONDS, 0.05).until(lambda _: shown())
            self.driver.refresh()
            return None

        return cast(WebElement, eventually_sync(found, what=what, seconds=PATIENCE_SECONDS))

    def rows(self) -> list[str]:
        """The rows of the task list, as text."""
        try:
            return [row.text for row in self.find("#tasks-table tbody tr[id]")]
        except StaleElementReferenceException:  # the list was drawn anew meanwhile
            return []

    def ids(self) -> set[str]:
        """The ids of the jobs in the task list."""
        try:
            return {str(row.get_attribute("id")) for row in self.find("#tasks-table tbody tr[id]")}
        except StaleElementReferenceException:
            return set()

    def search(self, text: str) -> None:
        """Type into the list's search box."""
        box = self.find("input[type=search]")[0]
        box.clear()
        box.send_keys(text)

    def details(self) -> dict[str, str]:
        """The lines of a task's page."""
        names, values = self.find(".task-data-row > dt, .detail-row > dt"), self.find(".detail-row > dd")
        return {name.text: value.text for name, value in zip(names, values, strict=True)}


@pytest.fixture(scope="session")
def driver() -> Generator[webdriver.Chrome]:
    """A browser, with a profile of its own that is gone afterwards."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    chromedriver = shutil.which("chromedriver")
    if browser is None or chromedriver is None:
        missing = "Chromium" if browser is None else "chromedriver"
        pytest.skip(f"no {missing} on PATH: install it (Debian: apt-get install chromium chromium-driver)")
    with tempfile.TemporaryDirectory(prefix="mcpc-browser-", ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        # Both paths are given, so Selenium has nothing to look for, or to fetch.
        options.binary_location = browser
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        # What the browser makes in passing goes there too.
        service = webdriver.ChromeService(chromedriver, env={**os.environ, "TMPDIR": profile})
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SE_OFFLINE", "true")
            patch.setenv("SE_AVOID_STATS", "true")
            started = webdriver.Chrome(options, service)
        try:
            yield started
        finally:
            started.quit()


@pytest.fixture(scope="session", params=["asyncio", "prefork"])
def deployment(request: pytest.FixtureRequest, driver: webdriver.Chrome) -> Generator[Deployment]:
    """A store, and a worker that runs one job at a time and holds others ready, where Flower can revoke them."""
    with (
        short_folder() as folder,
        EmbeddedStore.open(folder / "store") as store,
        deployed(store.url, NAMESPACE, spec=MODULE, settings={"CELERY_CONFIG_MODULE": "config.celeryconfig"}) as found,
        run_worker(found, request.param),
    ):
        yield found


@contextmanager
def run_worker(deployment: Deployment, pool: str) -> Generator[None]:
    argv = [sys.executable, "-m", "celery", "-A", "mcp_celery", "worker", "-l", "INFO", *POOLS[pool]]
    argv += ["-c", "1", "--prefetch-multiplier", str(HELD_JOBS), "-n", f"{NAMESPACE}@worker-1"]
    log = deployment.folder / "worker.log"
    with process(argv, deployment.env(MCP_CELERY_SERVER=deployment.spec), log) as child:
        wait_until(lambda: b" ready." in log.read_bytes() or child.poll() is not None, "the worker is ready")
        assert child.poll() is None, log.read_text()
        yield


@pytest.fixture(scope="session")
def mcp_url(deployment: Deployment) -> str:
    """The server."""
    return deployment.serve()


@pytest.fixture(scope="session")
def flower(deployment: Deployment) -> Generator[Flower]:
    """Flower with our settings."""
    with run_flower(deployment, "--conf=config/flowerconfig.py") as running:
        yield running


@pytest.fixture
def page(driver: webdriver.Chrome, flower: Flower) -> Page:
    return Page(driver, flower)


@pytest.fixture
def picture(request: pytest.FixtureRequest, driver: webdriver.Chrome) -> Any:
    """Take a picture of what the browser shows, where ``--screenshots`` says where to."""
    folder = cast("Path | None", request.config.getoption("--screenshots"))

    def take(name: str) -> None:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            assert driver.save_screenshot(os.fspath(folder / name))

    return take
