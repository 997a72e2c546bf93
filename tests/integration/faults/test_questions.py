"""Workers die while a tool asks: an awaited question dies with its job, a returned one survives everything."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcp_celery import Settings
from tests.integration.conftest import Starter, lines, settings_for
from tests.integration.test_worker_asking import SERVER, ask, named, requests, respond, text_of
from tests.support.live import live_server
from tests.support.nodes import EmbeddedStoreContainer, Pool
from tests.support.servers import asking

pytestmark = pytest.mark.anyio


@pytest.mark.shows("M12", "M13")
async def test_an_awaited_question_is_removed_with_its_job(
    own: Starter, quick: Settings, pool: Pool, tmp_path: Path
) -> None:
    async with live_server(asking.build, quick) as live:
        worker = own.worker(SERVER, pool, quick, concurrency=4)
        once = await ask(live, "greet")
        again = await ask(live, "greet_again", config=asking.REPEATABLE)
        (first,) = await requests(live, again)
        await requests(live, once)
        worker.kill_all()

        failed = (await live.end_of(once)).record
        assert failed.status == "failed"
        own.worker(SERVER, pool, quick, concurrency=4)
        await live.becomes(again, lambda now: now.attempt == 2 and now.status == "input_required", "asked again")
        (second,) = await requests(live, again)
        assert second != first
        await respond(live, again, named("Ada"))
        assert text_of(await live.end_of(again)) == "Hello, Ada!"


async def test_a_waiting_tool_gets_its_answer_after_restarts_of_the_store(
    own: Starter, own_store: EmbeddedStoreContainer, store: EmbeddedStoreContainer, pool: Pool
) -> None:
    """The broker is another one: Celery's own connection is not what is tested here."""
    settings = settings_for(own_store, f"answers-{pool}", broker_url=store.url)
    own.worker(SERVER, pool, settings)
    async with live_server(asking.build, settings) as live:
        record = await ask(live, "one_after_the_other")
        for name in "abc":
            await requests(live, record)
            own_store.restart()
            await respond(live, record, named(name))
        assert text_of(await live.end_of(record)) == "a b c"


@pytest.mark.shows("M12")
async def test_a_returned_question_survives_its_worker(
    own: Starter, quick: Settings, pool: Pool, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    async with live_server(asking.build, quick) as live:
        worker = own.worker(SERVER, pool, quick)
        record = await ask(live, "journey", {"notes": str(notes)})
        await requests(live, record)
        worker.kill_all()
        await respond(live, record, named("Rome"))
        own.worker(SERVER, pool, quick)
        await respond(live, record, named("Athens"))
        view = await live.end_of(record)
        assert text_of(view) == "Rome, Athens"
        assert (view.record.leg, view.record.redeliveries) == (3, 0)
        assert lines(notes) == ["begun", "first", "then Rome"]
