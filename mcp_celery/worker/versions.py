"""Which versions of components a worker has, and what it does with a job for another version.

The worker's parent process looks first (``worker/celery/handing_back.py``), so that such a job takes no slot. What it
lets through is decided here: the record may say otherwise than the message, and of a component with several versions
only the request says which one runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from mcp_celery.base_exceptions import containing
from mcp_celery.components.declarations import DeclaredComponent, DeclaredComponents
from mcp_celery.components.source import RequestMeta
from mcp_celery.context import TaskContextSnapshot
from mcp_celery.engine import HandBack, HandedBack, TaskStore, wrong_version
from mcp_celery.engine.retry import JOB_GIVES_UP_SECONDS, until_store_answers
from mcp_celery.errors import INTERNAL_ERROR, ComponentExitedError, JobFailedError
from mcp_celery.logs import get_logger
from mcp_celery.settings import ComponentMatch
from mcp_celery.worker.delivery import JobCall, JobRefused

logger = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class HeldVersion:
    """A version of a component that a worker has.

    Attributes:
        fingerprint: Its fingerprint.
        name: The component, for people: ``tool:build_report``.
        queue: The queue of its jobs; None where a route names an exchange only.
        priority: The priority of its jobs; None for none.
    """

    fingerprint: str
    name: str
    queue: str | None
    priority: int | None = None


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """The fate of a job whose worker has another version of its component than the server.

    Attributes:
        match: Which version may run it, where no live worker has the server's.
        max_handbacks: How often it is handed back.
    """

    match: ComponentMatch = "exact"
    max_handbacks: int = 100


class VersionCheck:
    """Decides on jobs of one server before they start, on one event loop.

    Args:
        components: The server's components, as this worker has them.
        policy: What the worker does with a job for another version.
    """

    def __init__(self, components: DeclaredComponents, policy: VersionPolicy) -> None:
        self._components: Final = components
        self._policy: Final = policy

    async def fingerprint(self, call: JobCall, meta: RequestMeta | None = None) -> str:
        """The fingerprint of the component that a job would run, '' where this worker has none.

        Args:
            call: The delivery.
            meta: The request's ``_meta``; None: of the component's versions the default one.
        """
        return (await self._find(call, meta)).fingerprint or ""

    async def _find(self, call: JobCall, meta: RequestMeta | None) -> DeclaredComponent:
        return await self._components.find(call.parts.task_type, call.parts.component_identifier, meta)

    async def decide(self, store: TaskStore, call: JobCall, server: str) -> str | None:
        """Decide on a job that was not let start, because the default version of its component is not the server's.

        Args:
            store: The records.
            call: The delivery.
            server: Fingerprint of the component that the server has.

        Returns:
            With which fingerprint to start it after all; None: it runs though this worker has another version.

        Raises:
            JobRefused: It was handed back, or no longer concerns this worker.
            JobFailedError: Its task has failed.
            SnapshotUnreadableError: The request cannot be read.
            StoreUnavailableError: The store did not answer.
        """
        snapshot = await until_store_answers(lambda: store.snapshot(call.ref), give_up_seconds=JOB_GIVES_UP_SECONDS)
        if snapshot is None:  # expired meanwhile, which the start finds
            return server
        found = await self._find(call, snapshot.meta)
        if found.fingerprint == server:
            return server
        handback = HandBack(
            attempt=call.attempt,
            retries=call.retries,
            worker=call.worker,
            key=call.key,
            most=self._policy.max_handbacks,
        )
        handed = await until_store_answers(
            lambda: store.hand_back(call.ref, handback), give_up_seconds=JOB_GIVES_UP_SECONDS
        )
        if handed.is_over:
            log_hand_back(call.job_id, server, found.fingerprint, handed)
            if handed.verdict == "handed back":
                call.publish_later(call.key, handed.pause_ms)
            raise JobRefused
        if self._policy.match == "accepts" and await _accepts(found, snapshot):
            logger.info(
                "job %s runs on version %s of its component, which takes all of its arguments; the server has version "
                "%s, and no live worker has it",
                call.job_id,
                found.fingerprint,
                server,
            )
            return None
        failed = wrong_version(server, found.fingerprint, handed.verdict)
        failed = replace(failed, attempt=call.attempt, unless_begun=call.retries)
        changed = await until_store_answers(
            lambda: store.change(call.ref, failed), give_up_seconds=JOB_GIVES_UP_SECONDS
        )
        if changed is None or not changed.accepted:
            raise JobRefused
        logger.error("job %s does not run: %s", call.job_id, failed.status_message)
        raise JobFailedError(INTERNAL_ERROR, failed.status_message or "")


async def _accepts(found: DeclaredComponent, snapshot: TaskContextSnapshot) -> bool:
    """Whether a component takes a request's arguments, and ignores none that the server's component knew."""
    try:
        with containing(f"the check of arguments of {found.identifier!r}", cancelled=lambda: False):
            return await found.accepts(snapshot.params.get("arguments") or {})
    except ComponentExitedError:
        return False


def log_hand_back(job_id: str, server: str, worker: str | None, handed: HandedBack) -> None:
    """Log what became of a job that a worker did not start.

    Args:
        job_id: Its Celery id.
        server: Fingerprint of the component that the server has.
        worker: That of this worker's component, None where it has none.
        handed: What became of it.
    """
    if handed.verdict == "superseded":
        logger.info("job %s does not run: its task has ended, or another delivery counts", job_id)
        return
    logger.info(
        "handed back job %s: the server has version %s of its component, this worker %s; next attempt in %d ms",
        job_id,
        server,
        "has none" if worker is None else f"has version {worker}",
        handed.pause_ms,
    )


def versions_of(held: Sequence[HeldVersion], name: str) -> str | None:
    """The fingerprints that a worker has of a component, for a reason; None where it has none."""
    return ", ".join(one.fingerprint for one in held if one.name == name) or None
