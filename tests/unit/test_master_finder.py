"""Which Sentinel is asked, and what a server's errors say of its role."""

from __future__ import annotations

import threading
from typing import Any, Final

import pytest
import redis
from redis.exceptions import MasterDownError
from typing_extensions import override

from mcp_celery.common.redis_url import parse
from mcp_celery.store.masters import Address, BlockingMasterFinder
from mcp_celery.store.roles import is_of_replica
from mcp_celery.store.sentinel import SentinelSearch

CUT_OFF: Final = ("cut.off", 26_379)
TOGETHER: Final = ("together", 26_379)
DEAD: Final = ("dead", 6_379)
LIVE: Final = ("live", 6_379)


class ScriptedFinder(BlockingMasterFinder):
    """Sentinels that do not agree: one has not heard that another server is the master."""

    def __init__(self) -> None:
        url = parse("sentinel://cut.off,together/main")
        assert url.sentinels is not None
        super().__init__(SentinelSearch(url, url.sentinels, timeout_seconds=1))

    @override
    def _ask(self, server: Address) -> Any:
        return DEAD if server == CUT_OFF else LIVE


def test_a_sentinel_that_names_a_dead_master_is_asked_last() -> None:
    finder = ScriptedFinder()
    assert finder.find() == DEAD
    for _ in range(3):  # as many connections fail at the same time
        finder.search.distrust(DEAD)
    assert finder.search.order == [TOGETHER, CUT_OFF]
    assert finder.find() == LIVE
    finder.search.distrust(DEAD)  # a connection that was slow to fail says nothing of what was found since
    assert finder.find() == LIVE


def test_threads_that_ask_at_once_lose_no_sentinel() -> None:
    finder = ScriptedFinder()
    failures: list[Exception] = []

    def ask() -> None:
        try:
            for _ in range(2_000):
                finder.search.distrust(finder.find())
        except Exception as error:  # noqa: BLE001 - whatever it is
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(finder.search.order) == [CUT_OFF, TOGETHER]


@pytest.mark.parametrize(
    ("error", "with_sentinels_only"),
    [
        (redis.ReadOnlyError("You can't write against a read only replica."), False),
        (MasterDownError("Link with MASTER is down and replica-serve-stale-data is set to 'no'."), False),
        (redis.ResponseError("NOREPLICAS Not enough good replicas to write."), True),
    ],
)
def test_errors_of_a_server_that_is_no_master_are_recognized(
    error: redis.ResponseError, with_sentinels_only: bool
) -> None:
    assert is_of_replica(error, has_sentinels=True)
    assert is_of_replica(error, has_sentinels=False) is not with_sentinels_only
