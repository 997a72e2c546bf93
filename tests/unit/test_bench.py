"""The bench's page and its delaying proxy. No test asserts a speed; a delay is at least as long as it says."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from bench import page
from bench.delay import serve
from bench.figures import Measured, load, note
from bench.measures import MEASURES
from bench.run import Row
from bench.systems import OURS
from tests.support.waiting import eventually

PAGE: Final = """by hand
<!-- bench:run -->
<!-- bench:end -->
<!-- bench:table -->
<!-- bench:end -->
<!-- bench:sizing -->
<!-- bench:end -->
<!-- bench:remarks -->
<!-- bench:end -->
<!-- bench:commands -->
<!-- bench:end -->
"""
FIRST: Final = Measured(
    command="python -m bench --write",
    date="2026-01-01",
    rounds=9,
    quick=False,
    seconds=12.0,
    load=0.5,
    environment={"Machine": "one."},
    rows=[Row("submit, p50", "ms", {OURS: 2.5}), Row("store: a task", "KiB", {OURS: 3.5}, sizing=True)],
    remarks=["with pauses", "get | load.lua | 1.0 | EVALSHA 1.0"],
)
SECOND: Final = replace(
    FIRST,
    command="python -m bench --only push --write",
    date="2026-02-02",
    environment={"Machine": "another."},
    rows=[Row("push, p50", "ms", {OURS: 4.5})],
    remarks=[],
)


def test_a_run_replaces_the_measures_that_it_took_and_keeps_the_others(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    note("push", FIRST, ["submit", "push"], path)
    note("submit", FIRST, ["submit", "push"], path)
    book = note("push", SECOND, ["submit", "push"], path)
    assert list(book.items()) == [("submit", FIRST), ("push", SECOND)]
    assert load(path) == book
    assert note("get", FIRST, ["get"], path) == {"get": FIRST}, "a measure that is no more is dropped"


def test_the_page_says_in_which_run_each_figure_was_measured() -> None:
    text = page.filled(PAGE, {"submit": FIRST, "push": SECOND})
    assert text.startswith("by hand\n")
    lines = text.splitlines()
    assert "| submit, p50 |  |  | 2.5 ms |  |  |  | `submit` |" in lines
    assert "| push, p50 |  |  | 4.5 ms |  |  |  | `push` |" in lines
    assert "| store: a task | 3.5 KiB |  | `python -m bench --only submit` |" in lines
    assert "| get | load.lua | 1.0 | EVALSHA 1.0 |" in lines
    assert "- `submit`: with pauses" in lines
    assert "- **Machine** (`submit`): one." in lines
    assert "- **Machine** (`push`): another." in lines
    (run,) = (line for line in lines if line.startswith("- **2026-02-02**"))
    assert "`python -m bench --only push --write`" in run
    assert "`push` 12 (0.5)" in run
    assert page.filled(text, {"submit": FIRST, "push": SECOND}) == text


def test_the_page_of_the_project_has_the_figures_that_are_noted() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.filled(text, load()) == text, "write the page with `python -m bench --write`"


@pytest.mark.parametrize("name", MEASURES)
def test_the_page_of_the_project_names_the_command_of_each_measure(name: str) -> None:
    assert f"--only {name}" in page.PAGE.read_text(encoding="utf-8")


@pytest.mark.anyio
async def test_answers_come_later_and_in_their_order_from_a_store_that_is_further_away(tmp_path: Path) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
        writer.close()

    near, far = str(tmp_path / "near"), str(tmp_path / "far")
    delay_seconds = 0.05
    async with await asyncio.start_unix_server(echo, near):
        proxy = asyncio.create_task(serve(far, near, delay_seconds))
        await eventually((tmp_path / "far").is_socket, what="the proxy listens")
        reader, writer = await asyncio.open_unix_connection(far)
        sent = [f"{number}\n".encode() for number in range(100)]
        began = time.monotonic()
        for line in sent:
            writer.write(line)
            await writer.drain()
            await asyncio.sleep(0)
        assert [await reader.readline() for _ in sent] == sent
        assert time.monotonic() - began >= delay_seconds
        writer.write_eof()
        assert await reader.read() == b"", "the end of the store's connection reaches the client"
        writer.close()
        proxy.cancel()
        with suppress(asyncio.CancelledError):
            await proxy
