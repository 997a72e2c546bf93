"""Checks of the workers: who consumes the queues, with which versions, keys, stores and clocks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

from mcp_celery.broker.consumers import CeleryWorker, celery_workers, told_by_workers
from mcp_celery.common.installed import PACKAGE
from mcp_celery.engine.turns import window_of
from mcp_celery.operate.doctor.findings import Findings, skew_of
from mcp_celery.operate.doctor.store import outside
from mcp_celery.operate.site import Open
from mcp_celery.server.celery_tasks import CeleryTasks
from mcp_celery.store.inspection import LeasedWorker
from mcp_celery.worker import HeldVersion

COMMAND: Final = "mcp_celery"
"""The command of remote control that ``worker/celery/answering.py`` answers."""
KEYS: Final = "MCP_CELERY_ENCRYPTION_KEYS"
MOST_NAMED: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The answers of the workers.

    Attributes:
        leased: Those whose heartbeat holds, as the store knows them.
        celery: Those that answer Celery, by node name; None where they cannot be asked.
        told: What they report about themselves, by node name; an earlier release says nothing.
        asked_ms: When they were asked and had answered, in ms since the epoch.
    """

    leased: Sequence[LeasedWorker]
    celery: Mapping[str, CeleryWorker] | None
    told: Mapping[str, Mapping[str, Any]]
    asked_ms: tuple[int, int]

    def consumers(self, queue: str, fingerprints: frozenset[str]) -> list[str]:
        """The node names of the workers that consume a queue.

        Args:
            queue: The queue.
            fingerprints: Of the components whose jobs go there: a worker that does not answer, and advertises one,
                consumes the queue.
        """
        answering = self.celery or {}
        nodes = [node for node, one in answering.items() if queue in one.queues]
        nodes += [
            one.node for one in self.leased if one.node not in answering and not fingerprints.isdisjoint(one.components)
        ]
        return list(dict.fromkeys(nodes))


async def ask_workers(tasks: CeleryTasks, opened: Open) -> Answers:
    """Ask the workers, who have some seconds to answer.

    Raises:
        StoreUnavailableError: The store did not answer.
    """
    celery = await asyncio.to_thread(celery_workers, tasks.celery)
    before = time.time_ns() // 1_000_000
    told = None if celery is None else await asyncio.to_thread(told_by_workers, tasks.celery, COMMAND)
    asked_ms = (before, time.time_ns() // 1_000_000)
    # After the answers: else the heartbeats of a worker that has started meanwhile would be missed.
    now = await opened.inspection.now_ms()
    leased = [one for one in await opened.inspection.workers() if one.until_ms > now]
    return Answers(leased=leased, celery=celery, told=told or {}, asked_ms=asked_ms)


async def check_workers(tasks: CeleryTasks, opened: Open) -> Findings:
    """Check the workers of a server.

    Raises:
        StoreUnavailableError: The store did not answer.
    """
    findings = Findings("workers")
    answers = await ask_workers(tasks, opened)
    if answers.celery is None:
        findings.ok("remote control does not reach the workers: they are judged by their heartbeats alone")
    held = await asyncio.to_thread(tasks.held_versions)
    consumed: list[HeldVersion] = []
    for queue in sorted({one.queue for one in held if one.queue is not None}):
        of_queue = [one for one in held if one.queue == queue]
        nodes = answers.consumers(queue, frozenset(one.fingerprint for one in of_queue))
        if not nodes:
            names = _some([one.name for one in of_queue])
            findings.error(
                f"no worker consumes the queue {queue!r}, so these never run: {names}", tasks.worker_command(queue)
            )
            continue
        findings.ok(f"the queue {queue!r} is consumed by {_some(nodes)}")
        consumed += of_queue
        _check_stores(findings, opened.namespace, nodes, answers)
    _check_webhooks(findings, tasks, answers)
    _check_turns(findings, tasks, answers)
    _check_components(findings, consumed, answers)
    _check_told(findings, tasks, opened.namespace, answers)
    return findings


def _check_webhooks(findings: Findings, tasks: CeleryTasks, answers: Answers) -> None:
    """Find a queue of webhooks that no worker consumes. Workers that cannot be asked do not say what they consume."""
    if (queue := tasks.webhook_queue) is None or answers.celery is None:
        return
    if nodes := answers.consumers(queue, frozenset()):
        findings.ok(f"the queue {queue!r} of the webhooks is consumed by {_some(nodes)}")
    else:
        findings.error(
            f"no worker consumes the queue {queue!r} (MCP_CELERY_WEBHOOK_QUEUE), so no webhook is delivered",
            tasks.worker_command(queue),
        )


def _check_turns(findings: Findings, tasks: CeleryTasks, answers: Answers) -> None:
    """Where callers take turns, find workers that do not say how many jobs they can run."""
    if tasks.settings.fair is None or not answers.leased:
        return
    slots = sum(one.slots or 0 for one in answers.leased)
    findings.ok(f"callers take turns: the broker has at most {window_of(slots)} jobs (slots of the workers: {slots})")
    if silent := [one.node for one in answers.leased if one.slots is None]:
        findings.warning(
            f"callers take turns (MCP_CELERY_FAIR), but workers do not say how many jobs they can run: {_some(silent)}",
            f"the release of {PACKAGE} there",
        )


def _check_stores(findings: Findings, namespace: str, nodes: Sequence[str], answers: Answers) -> None:
    """Find workers that consume the queue and keep their tasks elsewhere."""
    leased = {one.node for one in answers.leased}
    for node in nodes:
        if node in leased:
            continue
        told = answers.told.get(node)
        ours = None if told is None else told["servers"].get(namespace)
        if told is not None and ours is None:
            others = _some(sorted(told["servers"])) or "none"
            findings.error(
                f"the worker {node} consumes the queue without knowing the server {namespace!r} (it knows: {others})",
                "MCP_CELERY_SERVER and MCP_CELERY_NAMESPACE of that worker",
            )
        else:
            where = "" if ours is None else f": it uses {ours['store']}"
            findings.error(
                f"the worker {node} consumes the queue, and sends no heartbeat to this store{where}",
                "MCP_CELERY_REDIS_URL and MCP_CELERY_KEY_PREFIX of that worker",
            )


def _check_components(findings: Findings, held: Sequence[HeldVersion], answers: Answers) -> None:
    """Find components that no worker has, or has in another version."""
    known = {fingerprint for one in answers.leased for fingerprint in one.components}
    names = {name for one in answers.leased for name in one.components.values()}
    missing = [one for one in held if one.fingerprint not in known] if answers.leased else []
    if unknown := [one.name for one in missing if one.name not in names]:
        findings.error(f"no worker knows: {_some(unknown)}", "the release of the server that the workers run")
    if other := [one.name for one in missing if one.name in names]:
        findings.error(
            f"no worker has the server's version of: {_some(other)}", "the release of the server that the workers run"
        )
    if held and answers.leased and not missing:
        which = "its component" if len(held) == 1 else f"each of its {len(held)} components"
        findings.ok(f"the workers have the server's version of {which}")


def _check_told(findings: Findings, tasks: CeleryTasks, namespace: str, answers: Answers) -> None:
    """Compare what workers report about themselves with this process."""
    ours, keys = version(PACKAGE), tasks.connections.signer.key_names
    same_keys = True
    for node, told in answers.told.items():
        if (server := told["servers"].get(namespace)) is None:
            continue
        if told["version"] != ours:
            findings.warning(
                f"the worker {node} has release {told['version']} of {PACKAGE}, and this process {ours}",
                f"the release of {PACKAGE} there",
            )
        if problem := _keys_problem(keys, server["keys"]):
            same_keys = False
            findings.error(f"the worker {node} {problem}", f"{KEYS} of that worker or of this process")
        skew_of(findings, f"the worker {node}", outside(int(told["now_ms"]), *answers.asked_ms))
    if answers.told and same_keys:
        findings.ok("servers and workers have the same encryption keys" if keys else "there are no encryption keys")
    for one in answers.leased:
        if answers.celery is not None and one.node in answers.celery and one.node not in answers.told:
            findings.warning(
                f"the worker {one.node} is of an earlier release, which does not say its keys and clock",
                f"the release of {PACKAGE} there",
            )


def _keys_problem(ours: Sequence[str], theirs: Sequence[str]) -> str | None:
    """The error of a worker's keys, each list newest first; None: each side opens what the other seals now."""
    if bool(ours) != bool(theirs):
        return (
            "has no encryption keys, and this process has some"
            if ours
            else "has encryption keys, and this process none"
        )
    if not ours or (ours[0] in theirs and theirs[0] in ours):
        return None
    if set(ours).isdisjoint(theirs):
        return "has other encryption keys"
    return "does not have the newest key of this process, or this process not that of the worker"


def _some(names: Sequence[str]) -> str:
    """The first of several names."""
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
