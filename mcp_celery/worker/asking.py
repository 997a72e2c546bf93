"""Questions to a task's caller: what may be asked, and how a job waits for the answer.

``ctx.elicit`` and its like end here. The question is kept with the task's record, where the caller finds it, and the
job learns of the answer by the task's bus; what counts is always what is read from the store, so a lost hint costs a
moment. A question of an abandoned job is withdrawn.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import anyio
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INTERNAL_ERROR,
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    REQUEST_TIMEOUT,
    ClientCapabilities,
    MissingRequiredClientCapabilityErrorData,
)

from mcp_celery.common.schemas import UnusableSchemaError
from mcp_celery.context import TaskContextSnapshot
from mcp_celery.engine import (
    ELICIT,
    MAX_MESSAGE_CHARS,
    Answer,
    Asking,
    Extension,
    JSONObject,
    Question,
    QuestionStore,
    RpcError,
    TaskBus,
    TaskHints,
    missing_capability,
    now_ms,
    require_usable_form,
)
from mcp_celery.engine.retry import until_store_answers
from mcp_celery.errors import McpCeleryError
from mcp_celery.worker.delivery import JobCall
from mcp_celery.worker.revision import CallerRevision

logger = logging.getLogger(__name__)

RECHECK_SECONDS: Final = 10.0
"""How long a waiting job trusts silence before it looks for its answer."""


@dataclass(frozen=True, slots=True)
class InputLifetimes:
    """How a wait for input may lengthen a task's life.

    Attributes:
        after_wait_ms: How long a task is kept after the longest wait.
        max_ttl_ms: The longest time to live, counted from the task's creation.
    """

    after_wait_ms: int
    max_ttl_ms: int

    def extension(self, revision: CallerRevision, wait_ms: int | None) -> Extension | None:
        """The effect of a wait on the life of a task.

        Args:
            revision: The revision of the creating request.
            wait_ms: The longest wait, None for any.
        """
        if revision.has_fixed_ttl:
            return None
        longest = self.max_ttl_ms if wait_ms is None else wait_ms + self.after_wait_ms
        return Extension(now_ms() + longest, self.max_ttl_ms)


class Asker:
    """Asks the caller of one job's task.

    Args:
        store: Where questions are kept.
        bus: Gives the event loop's bus.
        call: The job.
        snapshot: The creating request, which says what its client can be asked.
        revision: The revision of the creating request.
        lifetimes: How a wait may lengthen the task's life.
        on_wait: Called when a wait begins.
    """

    def __init__(
        self,
        store: QuestionStore,
        bus: Callable[[], TaskBus],
        call: JobCall,
        snapshot: TaskContextSnapshot,
        revision: CallerRevision,
        lifetimes: InputLifetimes,
        *,
        on_wait: Callable[[], None],
    ) -> None:
        self._store = store
        self._bus = bus
        self._call = call
        self._ref = call.ref
        self._snapshot = snapshot
        self._revision = revision
        self._lifetimes = lifetimes
        self._on_wait = on_wait
        self._open: set[str] = set()

    async def ask(self, method: str, params: JSONObject, timeout_seconds: float | None = None) -> JSONObject:
        """Ask, and wait for the answer.

        Args:
            method: One of ``ASKABLE``.
            params: Parameters of the request.
            timeout_seconds: How long the component itself waits for an answer, None for as long as is configured.

        Returns:
            The result of the request in wire form. A form or URL without an answer in time is a ``cancel``.

        Raises:
            MCPError: -32021 when the client did not declare that it can be asked this; the error that it answered with;
                -32001 when it did not answer in time; -32603 when the task ended meanwhile.
        """
        require_askable(self._snapshot, method, params)
        question = Question(secrets.token_hex(8), method, params)
        patience = min(self._call.input_timeout_seconds, timeout_seconds or self._call.input_timeout_seconds)
        self._open.add(question.key)
        self._on_wait()
        answer: Answer | None = None
        try:
            async with asyncio.timeout(patience):
                answer = await self._answer(question, round(patience * 1000))
        except TimeoutError:
            logger.info("no answer to a question of task %s within %g s", self._ref.shown_id, patience)
        finally:
            self._open.discard(question.key)
            withdrawn = await self._withdraw([question.key])
        if answer is None:
            answer = withdrawn.get(question.key)  # it may have come just now
        if answer is None:
            if method == ELICIT and timeout_seconds is None:
                return {"action": "cancel"}
            raise MCPError(REQUEST_TIMEOUT, f"The client did not answer {method} within {patience:g} s")
        if isinstance(answer, RpcError):
            raise MCPError(answer.code, answer.message, answer.data)
        return answer

    async def _answer(self, question: Question, wait_ms: int) -> Answer:
        asked = False

        async def answer() -> Answer:
            nonlocal asked
            async with self._bus().subscribe([self._ref]) as hints:
                asked = asked or await self._store.ask(self._ref, question, self._asking(wait_ms))
                while True:
                    heard = await self._store.heard(self._ref, question.key, attempt=self._call.attempt)
                    if not isinstance(heard, bool):
                        return heard
                    if not heard:
                        raise MCPError(INTERNAL_ERROR, "The task has ended; its question will not be answered")
                    await _next_hint(hints)

        return await until_store_answers(answer)

    def _asking(self, wait_ms: int) -> Asking:
        extension = self._lifetimes.extension(self._revision, wait_ms)
        return Asking(attempt=self._call.attempt, at_ms=now_ms(), extension=extension)

    async def _withdraw(self, keys: list[str]) -> Mapping[str, Answer]:
        answers: Mapping[str, Answer] = {}
        with anyio.CancelScope(shield=True):
            try:
                answers = await self._store.withdraw(self._ref, keys, attempt=self._call.attempt, at_ms=now_ms())
            except McpCeleryError:
                logger.warning("could not withdraw a question of task %s", self._ref.shown_id)
        return answers

    async def aclose(self) -> None:
        """Withdraw what the component asked and did not wait for."""
        if self._open:
            await self._withdraw(list(self._open))


async def _next_hint(hints: TaskHints) -> None:
    try:
        async with asyncio.timeout(RECHECK_SECONDS):
            await hints.__anext__()
    except TimeoutError:
        pass


def require_askable(snapshot: TaskContextSnapshot, method: str, params: JSONObject) -> None:
    """Refuse to ask what cannot be answered.

    Raises:
        MCPError: -32021, with what is missing, when the client did not declare that it can be asked this (so does the
            SDK in the foreground); -32603 when a form's schema cannot be used, so that no answer could be checked.
    """
    declared = ClientCapabilities.model_validate(snapshot.client_capabilities or {}, by_name=False)
    name, required = missing_capability(declared, method, params)
    if required is not None:
        data = MissingRequiredClientCapabilityErrorData(required_capabilities=required)
        raise MCPError(
            MISSING_REQUIRED_CLIENT_CAPABILITY,
            f"The client did not declare the {name} capability, which {method} requires",
            data.model_dump(by_alias=True, mode="json", exclude_none=True),
        )
    try:
        require_usable_form(params)
    except UnusableSchemaError as error:
        reason = f"The component asked with a requestedSchema that cannot be used: {error}"
        raise MCPError(INTERNAL_ERROR, reason[:MAX_MESSAGE_CHARS]) from None
