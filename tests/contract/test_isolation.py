"""Callers with every shape of token: none of them reaches another's task, over memory and Redis."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any, Final

import pytest

from mcp_celery.context import CallerToken, scope_of, subject_of
from mcp_celery.engine import Caller
from mcp_celery.errors import TaskNotFoundError
from tests.support.worlds import Watchful, World, a_submission, engine_of

pytestmark = pytest.mark.anyio

ISSUER: Final = "https://issuer.example"


def a_token(client_id: str, subject: str | None = None, **claims: Any) -> CallerToken:
    return CallerToken(client_id=client_id, scopes=["use"], subject=subject, claims=claims or None, token="secret")


TOKENS: Final = (
    a_token("app"),
    a_token("app", "alice"),
    a_token("app", "alice", iss=ISSUER),
    a_token("app", "alice", iss="https://other.example"),
    a_token("app", "Alice"),
    a_token("app", sub="bob"),
    a_token("app", "alice", sub="carol", iss="https://third.example"),
    a_token("app", "alice|admin"),
    a_token("app|alice"),
    a_token("app|alice", "admin"),
    a_token("app%7Calice"),
    a_token("app%7Calice", "admin"),
    a_token("app", "alice%7Cadmin"),
    a_token("app", "a:b"),
    a_token("app", "a", iss="b"),
    a_token("app:a", "b"),
    a_token("app", "*"),
    a_token("app", "ali\u0441e"),  # a Cyrillic letter
    a_token("app", " alice"),
    a_token("app", "x" * 300),
    a_token("app", "x" * 299 + "y"),
)


def caller_of(token: CallerToken | None) -> Caller:
    """As ``protocol/caller.py`` makes it."""
    if token is None:
        return Caller()
    issuer = (token.claims or {}).get("iss")
    return Caller(scope_of(token.client_id, subject_of(token)), issuer)


async def test_no_caller_reaches_the_task_of_another(world: World, queue: Watchful) -> None:
    engine = engine_of(world, queue)
    callers = [caller_of(token) for token in (*TOKENS, None)]
    assert len(set(callers)) == len(callers) == 22
    tasks = {caller: (await engine.submit(a_submission(caller))).task_id for caller in callers}
    for mine, theirs in permutations(callers, 2):
        with pytest.raises(TaskNotFoundError):
            await engine.get(mine, tasks[theirs])
        with pytest.raises(TaskNotFoundError):
            await engine.cancel(mine, tasks[theirs])
    for caller, task_id in tasks.items():
        assert (await engine.get(caller, task_id)).record.status == "working"
        listed = [record.task_id for record in (await engine.list(caller)).records]
        assert listed == ([] if caller.scope is None else [task_id])


async def test_a_subject_claim_that_is_not_a_text_names_no_subject() -> None:
    odd: list[Any] = [None, 0, 7, True, "", ["alice"], {"a": 1}]
    scopes = {caller_of(replace(a_token("app"), claims={"sub": sub})).scope for sub in odd}
    assert scopes == {"app"}
