"""``mcp-celery task``: look after a task by its id."""

from __future__ import annotations

from collections.abc import Sequence

import click
import mcp_types as types
from pydantic import ValidationError

from mcp_celery.cli.arguments import JSONCommand, parsed_object
from mcp_celery.cli.attend import Attendant, run
from mcp_celery.cli.outcome import STATUS_HELP, ClientError, Outcome, outcome_of
from mcp_celery.cli.remote import Remote, machine_option, remote_options
from mcp_celery.client import TaskHandle

task_id_argument = click.argument("task_id")


@click.group()
def task() -> None:
    """Look after a task of an MCP server, by the id that `call` prints where it is left running."""


@task.command(epilog=STATUS_HELP)
@remote_options
@task_id_argument
@machine_option
def get(url: str, task_id: str, headers: dict[str, str], machine: bool) -> None:
    """Print how the task TASK_ID stands, and its result where it has one."""

    async def body(attendant: Attendant) -> Outcome:
        async with attendant.remote.client() as client:
            state = (await TaskHandle.resume(client, task_id, answer=False)).state
        attendant.remote.print_state(state, name=task_id)
        return outcome_of(state)

    run(Remote(url=url, headers=headers, machine=machine), body)


@task.command(epilog=STATUS_HELP)
@remote_options
@task_id_argument
@machine_option
def watch(url: str, task_id: str, headers: dict[str, str], machine: bool) -> None:
    """Follow the task TASK_ID to its end, answer its questions at the prompt, and print its result.

    With --json each change is a line.
    """

    async def body(attendant: Attendant) -> Outcome:
        async with attendant.remote.client(elicitation=attendant.prompter.elicit) as client:
            handle = await TaskHandle.resume(client, task_id)
            return await attendant.finish(handle, name=task_id, each=True)

    run(Remote(url=url, headers=headers, machine=machine), body)


@task.command(epilog="Exit status: 0 the server took it; else as for `task get`.")
@remote_options
@task_id_argument
@machine_option
def cancel(url: str, task_id: str, headers: dict[str, str], machine: bool) -> None:
    """Ask the server to cancel the task TASK_ID, and print how it stands then."""

    async def body(attendant: Attendant) -> Outcome:
        async with attendant.remote.client() as client:
            handle = await TaskHandle.resume(client, task_id, answer=False)
            state = await handle.cancel()
        attendant.remote.print_state(state, name=task_id)
        return Outcome.COMPLETED

    run(Remote(url=url, headers=headers, machine=machine), body)


@task.command(cls=JSONCommand, epilog="Exit status: 0 the server took the answers; else as for `task get`.")
@remote_options
@task_id_argument
@click.option(
    "--json",
    "objects",
    multiple=True,
    metavar="['{…}']",
    help='Answers by the keys of the questions: \'{"KEY": {"action": "accept", "content": {…}}}\'. '
    "By itself: print JSON, for machines.",
)
def answer(url: str, task_id: str, headers: dict[str, str], objects: Sequence[str]) -> None:
    """Answer what the task TASK_ID asks now, at the prompt or with --json, and print how it stands then."""
    given, machine = parsed_object(objects)

    async def body(attendant: Attendant) -> Outcome:
        async with attendant.remote.client(elicitation=attendant.prompter.elicit) as client:
            handle = await TaskHandle.resume(client, task_id, answer=False)
            if not handle.questions:
                attendant.remote.print_state(handle.state, name=task_id)
                raise ClientError(f"task {task_id} asks nothing now", outcome_of(handle.state) or Outcome.FAILED)
            await handle.answer(given if given is not None else await _asked(attendant, handle))
            state = await handle.status()
        attendant.remote.print_state(state, name=task_id)
        return Outcome.COMPLETED

    run(Remote(url=url, headers=headers, machine=machine), body)


async def _asked(attendant: Attendant, handle: TaskHandle) -> dict[str, types.InputResponse]:
    """The answers of somebody at the prompt.

    Raises:
        ClientError: A question is none for a user.
    """
    answers: dict[str, types.InputResponse] = {}
    for key, question in handle.questions.items():
        try:
            request = types.ElicitRequest.model_validate(question, by_name=False)
        except ValidationError:
            raise ClientError(f"question {key!r} is none that can be asked here; use --json", Outcome.FAILED) from None
        answers[key] = await attendant.prompter.ask(request.params)
    return answers
