"""What needs the store is repeated until the store answers: soon at first, then twice a second, never in step."""

import itertools
from collections.abc import Callable

import pytest

from mcp_celery.engine import retry
from mcp_celery.engine.retry import LONGEST_PAUSE_SECONDS, pauses, until_store_answers, until_store_answers_blocking
from mcp_celery.errors import StoredDataError, StoreUnavailableError

pytestmark = pytest.mark.anyio


def failing(times: int, error: Callable[[], Exception] = StoreUnavailableError) -> Callable[[], str]:
    """An attempt that fails so many times."""
    left = iter(range(times))

    def attempt() -> str:
        for _ in left:
            raise error()
        return "answered"

    return attempt


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(retry, "LONGEST_PAUSE_SECONDS", 0.002)


async def test_an_attempt_is_repeated_until_the_store_answers() -> None:
    attempt = failing(5)

    async def awaited() -> str:
        return attempt()

    assert await until_store_answers(awaited) == "answered"


async def test_other_errors_are_not_repeated() -> None:
    attempt = failing(1, lambda: StoredDataError("damaged"))

    async def awaited() -> str:
        return attempt()

    with pytest.raises(StoredDataError):
        await until_store_answers(awaited)
    assert attempt() == "answered", "it was tried once"


async def test_retrying_ends_with_the_stores_error() -> None:
    tries = 0

    async def attempt() -> None:
        nonlocal tries
        tries += 1
        raise StoreUnavailableError

    with pytest.raises(StoreUnavailableError):
        await until_store_answers(attempt, give_up_seconds=0.5)
    assert tries > 1


def test_sync_code_waits_with_the_given_function() -> None:
    slept: list[float] = []
    assert until_store_answers_blocking(failing(3), slept.append) == "answered"
    assert len(slept) == 3


def test_sync_code_gives_up_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "JOB_GIVES_UP_SECONDS", -1.0)
    with pytest.raises(StoreUnavailableError):
        until_store_answers_blocking(failing(1), lambda _: pytest.fail("it waits no more"))


def test_pauses_double_up_to_the_longest_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for found, most in zip(pauses(), [0.0625, 0.125, 0.25, 0.5, 0.5, 0.5], strict=False):
        assert most / 2 <= found <= most <= LONGEST_PAUSE_SECONDS
    assert len({next(pauses()) for _ in range(100)}) > 1
    assert max(itertools.islice(pauses(), 1000)) <= LONGEST_PAUSE_SECONDS
