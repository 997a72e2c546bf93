"""``mcp-celery tasks``: list tasks, explain one, cancel one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from functools import partial
from operator import itemgetter
from typing import Any, Final

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mcp_celery.cli.errors import RunError
from mcp_celery.cli.operate.running import cell, print_json, run, site_of, terminal
from mcp_celery.cli.remote.render import print_line
from mcp_celery.common.durations import clock, span
from mcp_celery.engine.status import OPEN
from mcp_celery.keys import celery_job_id
from mcp_celery.logs import shown_task_id, with_short_ids
from mcp_celery.operate.actions import RefusedError, cancelled, purgeable, purged, requeued
from mcp_celery.operate.site import Open, Site
from mcp_celery.operate.tasks import Filter, Life, Routes, activity_of, find_task, life_of, listed, surroundings_of
from mcp_celery.store.inspection import InspectedTask

WATCH_SECONDS: Final = 2.0
PURGED_TOGETHER: Final = 10_000
SHOWN_CHARS: Final = 8
"""Of an id in a table: as much as lines of the log show of an anonymous one."""


def list_(  # noqa: PLR0913, PLR0917 - one for each option of the command
    server: str | None,
    namespace: str | None,
    statuses: Sequence[str],
    component: str | None,
    scope: str | None,
    older_than: int | None,
    worker: str | None,
    queue: str | None,
    limit: int,
    watch: bool,
    full_ids: bool,
    machine: bool,
    app: str | None,
) -> None:
    """List tasks.

    Args:
        server: The server, as it is named.
        namespace: The server's namespace.
        statuses: Which statuses and activities; empty: the open ones.
        component: The component's name, URI or URI template.
        scope: The caller's scope, '' for anonymous callers.
        older_than: How long ago a task was created at least, in ms.
        worker: The worker that has the job.
        queue: The queue of the jobs.
        limit: How many tasks are printed at most.
        watch: Whether to print them again and again.
        full_ids: Whether to print whole ids.
        machine: Whether to print JSON.
        app: The Celery app, as it is named.
    """
    site = site_of(app, server, namespace)
    wanted = set(statuses or ("open",))
    if "open" in wanted:
        wanted = (wanted - {"open"}) | OPEN
    only = Filter(
        statuses=frozenset() if "all" in wanted else frozenset(wanted),
        component=component,
        scope=scope,
        older_than_ms=older_than,
        worker=worker,
        queue=queue,
    )
    only_open = "; only open tasks were looked for: --status all selects every task" if not wanted ^ OPEN else ""
    listing = _Listing(site, only, limit, full_ids=full_ids)

    async def body(servers: list[Open]) -> None:
        console = terminal()
        table = partial(_table, several=len(servers) > 1, full_ids=full_ids)
        if machine:
            await _print_lines(listing, servers, limit=limit, watch=watch)
        elif not watch:
            rows = await listing.rows(servers)
            _print(console, rows, table, limit=limit, where=site.store_name + only_open)
        else:
            await _watch(console, listing, servers, table, limit=limit)

    try:
        run(site, body)
    except KeyboardInterrupt:
        return


class _Listing:
    """Reads the rows of a list.

    Args:
        site: Where tasks are kept.
        only: Which tasks.
        limit: How many at most.
        full_ids: Whether rows have whole ids.
    """

    def __init__(self, site: Site, only: Filter, limit: int, *, full_ids: bool) -> None:
        self._site = site
        self._only = only
        self._limit = limit
        self._full_ids = full_ids

    async def rows(self, servers: Sequence[Open]) -> list[dict[str, Any]]:
        """The rows, as ``--json`` prints them, the newest first; one more than the limit where there are more tasks."""
        found: list[tuple[int, dict[str, Any]]] = []
        for server in servers:
            routes, now = Routes(self._site, server.namespace), await server.inspection.now_ms()
            left = self._limit + 1
            async with aclosing(listed(self._site, server, self._only)) as tasks:
                async for task in tasks:
                    row = _row(server.namespace, task, routes, now, full_ids=self._full_ids)
                    found.append((task.record.created_at_ms, row))
                    left -= 1
                    if not left:
                        break
        found.sort(key=itemgetter(0), reverse=True)
        return [row for _, row in found[: self._limit + 1]]


def _row(namespace: str, task: InspectedTask, routes: Routes, now_ms: int, *, full_ids: bool) -> dict[str, Any]:
    record = task.record
    return {
        "server": namespace,
        "task": record.task_id if full_ids else shown_task_id(record.scope, record.task_id),
        "celeryId": record.job_id if full_ids else with_short_ids(record.job_id),
        "type": record.task_type,
        "component": record.declared_as or record.component,
        "scope": record.scope,
        "status": record.status,
        "activity": activity_of(task),
        "attempt": record.attempt,
        "queue": routes.queue_of(record),
        "worker": None if record.claim is None else record.claim.worker.rpartition("/")[0],
        "ageMs": now_ms - record.created_at_ms,
        "createdAt": clock(record.created_at_ms),
    }


async def _print_lines(listing: _Listing, servers: Sequence[Open], *, limit: int, watch: bool) -> None:
    is_said = False
    while True:
        rows = await listing.rows(servers)
        for row in rows[:limit]:
            print_json(row)
        if len(rows) > limit and not is_said:
            click.echo(_more_than(limit), err=True)
            is_said = True
        if not watch:
            return
        await asyncio.sleep(WATCH_SECONDS)


async def _watch(
    console: Console, listing: _Listing, servers: Sequence[Open], table: Callable[..., Table], *, limit: int
) -> None:
    with Live(console=console, auto_refresh=False, screen=console.is_terminal) as live:
        while True:
            rows = await listing.rows(servers)
            # In front of the table: the terminal may have no room for its end.
            more = [Text(_more_than(limit))] if len(rows) > limit else []
            live.update(Group(*more, table(rows[:limit])), refresh=True)
            await asyncio.sleep(WATCH_SECONDS)


def _print(
    console: Console, rows: Sequence[dict[str, Any]], table: Callable[..., Table], *, limit: int, where: str
) -> None:
    if not rows:
        print_line(console, f"No such tasks in {where}.")
        return
    console.print(table(rows[:limit]))
    if len(rows) > limit:
        print_line(console, _more_than(limit))


def _more_than(limit: int) -> str:
    return f"There are more than {limit}: raise --limit, or select fewer with the other options."


def _table(rows: Sequence[dict[str, Any]], *, several: bool, full_ids: bool) -> Table:
    ids = [str(row["task"]) if full_ids else str(row["task"])[:SHOWN_CHARS] for row in rows]
    table = Table()
    if several:
        table.add_column("server", overflow="ellipsis", no_wrap=True)
    table.add_column("task", no_wrap=True, min_width=max(map(len, ids), default=SHOWN_CHARS))
    table.add_column("component", overflow="ellipsis", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("age", justify="right", no_wrap=True)
    table.add_column("worker", overflow="ellipsis", no_wrap=True)
    table.add_column("scope", overflow="ellipsis", no_wrap=True)
    for task, row in zip(ids, rows, strict=True):
        table.add_row(
            *([cell(row["server"])] if several else []),
            cell(task),
            cell(row["component"]),
            cell(row["activity"]),
            span(row["ageMs"]),
            cell(row["worker"] or "-"),
            cell("-" if row["scope"] is None else row["scope"]),
        )
    return table


def show(
    server: str | None,
    namespace: str | None,
    task: str,
    show_arguments: bool,
    full_ids: bool,
    machine: bool,
    app: str | None,
) -> None:
    """Print the life of a task.

    Args:
        server: The server, as it is named.
        namespace: The server's namespace.
        task: The task's id, the beginning of it, its Celery id or its key.
        show_arguments: Whether to print contents.
        full_ids: Whether to print whole ids.
        machine: Whether to print JSON.
        app: The Celery app, as it is named.
    """
    site = site_of(app, server, namespace)

    async def body(servers: list[Open]) -> None:
        opened, found = await find_task(servers, task)
        life = await life_of(site, opened, found, contents=show_arguments)
        told = _told(life, contents=show_arguments, full_ids=full_ids)
        if machine:
            print_json(told)
        else:
            _print_life(terminal(), told)

    run(site, body)


def _told(life: Life, *, contents: bool, full_ids: bool) -> dict[str, Any]:
    """The life of a task as ``--json`` prints it."""
    record, now = life.task.record, life.around.place.now_ms
    ids = [celery_job_id(record.key, leg, hidden=record.hidden) for leg in range(record.leg, 0, -1)]
    if record.work.is_foreign:
        ids = record.job_ids
    told: dict[str, Any] = {
        "server": life.namespace,
        "task": record.task_id if full_ids else shown_task_id(record.scope, record.task_id),
        "celeryIds": ids if full_ids else [with_short_ids(one) for one in ids],
        "component": f"{record.task_type} {record.declared_as or record.component}",
        "version": record.fingerprint,
        "scope": record.scope,
        "status": record.status,
        "activity": activity_of(life.task),
        "mayBeRepeated": record.idempotent,
        "attempt": record.attempt,
        "waitsFor": {"reason": life.waiting.reason, "text": life.waiting.text, "command": life.waiting.command},
        "events": [{"at": clock(at), "agoMs": now - at, "what": what} for at, what in _events(life)],
        "followedByProcesses": life.around.place.followers,
        "expiresAt": clock(record.expires_at_ms),
    }
    if record.progress is not None:
        told["progress"] = record.progress.count
    if contents:
        told["arguments"] = life.contents
        told["message"] = record.status_message
        told["error"] = None if record.error is None else record.error.message
    elif life.reason is not None:
        told["error"] = life.reason
    return told


def _events(life: Life) -> list[tuple[int, str]]:
    """The events of a task in order. Its record keeps only the last one of each kind."""
    task, record, place = life.task, life.task.record, life.around.place
    worker = "" if record.claim is None else record.claim.worker.rpartition("/")[0]
    events = [(record.created_at_ms, "created")]
    if place.unclaimed_ms is not None:
        queue = "a queue that a route names" if life.around.queue is None else f"the queue {life.around.queue}"
        events.append((place.unclaimed_ms, f"in {queue}, attempt {record.attempt}"))
    if place.due_ms is not None:
        events.append((place.due_ms, "to be published again"))
    if record.claim is not None:
        events.append((record.claim.at_ms, f"received by {worker}"))
    if record.started_at_ms is not None:
        again = f" (retry {record.retries})" if record.retries and task.has_started else ""
        events.append((record.started_at_ms, f"started{again}"))
    counted = {
        "published again because its worker died or the broker lost it": record.redeliveries,
        "handed back by workers of another version": task.handbacks,
    }
    for what, number in counted.items():
        if number:
            events.append((record.updated_at_ms, f"{what}: {number} times"))
    if record.status == "input_required":
        events.append((record.updated_at_ms, f"{len(life.questions)} open questions"))
    if record.is_terminal:
        events.append((record.updated_at_ms, f"ended: {record.status}; its clients are notified"))
    return sorted(events, key=lambda event: event[0])


def _print_life(console: Console, told: dict[str, Any]) -> None:
    for name, key in (("task", "task"), ("server", "server"), ("component", "component"), ("version", "version")):
        if told[key] is not None:
            print_line(console, f"{name:<11}{cell(told[key])}")
    print_line(console, f"{'scope':<11}{'anonymous' if told['scope'] is None else cell(told['scope'])}")
    for one in told["celeryIds"]:
        print_line(console, f"{'Celery id':<11}{cell(one)}")
    repeats = "may be repeated" if told["mayBeRepeated"] else "is not repeated once it has started"
    print_line(console, f"{'state':<11}{told['activity']}, attempt {told['attempt']}; the job {repeats}")
    if "progress" in told:
        print_line(console, f"{'progress':<11}{cell(told['progress'])}")
    print_line(console, f"{'expires':<11}{told['expiresAt']}")
    print_line(console, "")
    for event in told["events"]:
        print_line(console, f"  {event['at']}  {span(event['agoMs']):>8} ago  {cell(event['what'])}")
    print_line(console, "")
    print_line(console, f"It waits for {cell(told['waitsFor']['text'])}.", style="bold")
    if (command := told["waitsFor"]["command"]) is not None:
        print_line(console, f"Start one: {cell(command)}")
    for name in ("message", "error"):
        if told.get(name):
            print_line(console, f"{name:<11}{cell(told[name])}")
    if told.get("arguments") is not None:
        console.print_json(data=told["arguments"])


def cancel(server: str | None, namespace: str | None, task: str, machine: bool, app: str | None) -> None:
    """Cancel a task.

    Args:
        server: The server, as it is named.
        namespace: The server's namespace.
        task: As for :func:`show`.
        machine: Whether to print JSON.
        app: The Celery app, as it is named.
    """
    site = site_of(app, server, namespace)

    async def body(servers: list[Open]) -> None:
        opened, found = await find_task(servers, task)
        changed, is_revoked = await cancelled(site, opened, found.record)
        shown_id, status = changed.record.shown_id, changed.record.status
        if machine:
            print_json({"task": shown_id, "status": status, "changed": changed.accepted, "revoked": is_revoked})
        if not changed.accepted:
            raise RunError(f"task {shown_id} has already ended: {status}")
        if not is_revoked:
            raise RunError(f"task {shown_id} is cancelled, but the broker did not answer: its job may run on")
        if not machine:
            click.echo(f"Task {shown_id} is cancelled, and its job is revoked.")

    run(site, body)


def requeue(server: str | None, namespace: str | None, task: str, force: bool, machine: bool, app: str | None) -> None:
    """Have the job of a task published again.

    Args:
        server: The server, as it is named.
        namespace: The server's namespace.
        task: As for :func:`show`.
        force: Whether a body that has started and may have had effects is repeated nevertheless.
        machine: Whether to print JSON.
        app: The Celery app, as it is named.
    """
    site = site_of(app, server, namespace)

    async def body(servers: list[Open]) -> None:
        opened, found = await find_task(servers, task)
        record = found.record
        if force and found.has_started and not record.idempotent:
            click.echo(
                f"Warning: the job of task {record.shown_id} has started, and its effects may happen twice.", err=True
            )
        try:
            await requeued(opened, found, force=force)
        except RefusedError as error:
            raise RunError(str(error)) from error
        if machine:
            print_json({"task": record.shown_id, "attempt": record.attempt + 1})
        else:
            seconds = site.settings.heartbeat_ms / 1000
            click.echo(
                f"The job of task {record.shown_id} is published again within {seconds:g} s, attempt "
                f"{record.attempt + 1}."
            )
            around = await surroundings_of(site, opened, found)
            if around.queue is not None and around.is_without_worker(record.fingerprint):
                idle = f"No live worker consumes the queue {around.queue!r}: it will wait there."
                click.echo(f"{idle} Start one: {around.command}")

    run(site, body)


def purge(
    server: str | None, namespace: str | None, older_than: int, yes: bool, machine: bool, app: str | None
) -> None:
    """Delete ended tasks before their time.

    Args:
        server: The server, as it is named.
        namespace: The server's namespace.
        older_than: How long ago they ended at least, in ms.
        yes: Whether to delete them without asking.
        machine: Whether to print JSON.
        app: The Celery app, as it is named.
    """
    site = site_of(app, server, namespace)

    async def body(servers: list[Open]) -> None:
        number = 0
        for opened in servers:
            gone = set[str]()
            while records := await purgeable(opened, older_than_ms=older_than, most=PURGED_TOGETHER, besides=gone):
                if not yes:
                    several = f"{len(records)}{' or more' if len(records) == PURGED_TOGETHER else ''}"
                    click.confirm(f"Delete {several} ended tasks of {opened.namespace}, with results?", abort=True)
                await purged(opened, records)
                gone |= {record.key for record in records}
            number += len(gone)
        if machine:
            print_json({"purged": number})
        else:
            click.echo(f"{number} ended {'task is' if number == 1 else 'tasks are'} deleted.")

    run(site, body)
