"""``mcp-celery task``: look after a task by its id."""

from __future__ import annotations

from typing import Any

import mcp_types as types
from pydantic import ValidationError

from mcp_celery.cli.headers import Headers
from mcp_celery.cli.remote.attend import Attendant, run
from mcp_celery.cli.remote.connection import Remote
from mcp_celery.cli.remote.outcome import ClientError, Outcome, outcome_of
from mcp_celery.client import TaskHandle


def get(url: str, task_id: str, headers: Headers, machine: bool) -> None:
    """Print how a task stands, and its result where it has one."""

    async def body(attendant: Attendant) -> Outcome:
        async with attendant.remote.client() as client:
            state = (await TaskHandle.resume(client, task_id, answer=False)).state
        attendant.remote.print_state(state, name=task_id)
        return outcome_of(state)

    run(Remote(url=url, headers=headers, machine=machine), body)


def watch(url: str, task_id: str, headers: Headers, machine: bool, timeout: float | None) -> None:
    """Follow a task to its end, answer its questions at the prompt, and print its result; for machines each change."""

    async def body(attendant: Attendant) -> Outcome:
        async with attendant.remote.client(elicitation=attendant.prompter.elicit) as client:
            handle = await TaskHandle.resume(client, task_id)
            return await attendant.finish(handle, name=task_id, each=True)

    run(Remote(url=url, headers=headers, machine=machine), body, timeout=timeout)


def cancel(url: str, task_id: str, headers: Headers, machine: bool) -> None:
    """Ask the server to cancel a task, and print how it stands then."""

    async def body(attendant: Attendant) -> Outcome:
        async with attendant.remote.client() as client:
            handle = await TaskHandle.resume(client, task_id, answer=False)
            state = await handle.cancel()
        attendant.remote.print_state(state, name=task_id)
        return Outcome.COMPLETED

    run(Remote(url=url, headers=headers, machine=machine), body)


def answer(url: str, task_id: str, headers: Headers, given: tuple[dict[str, Any] | None, bool]) -> None:
    """Answer what a task asks now, with what was given or else at the prompt, and print how it stands then."""
    answers, machine = given

    async def body(attendant: Attendant) -> Outcome:
        async with attendant.remote.client(elicitation=attendant.prompter.elicit) as client:
            handle = await TaskHandle.resume(client, task_id, answer=False)
            if not handle.questions:
                attendant.remote.print_state(handle.state, name=task_id)
                raise ClientError(f"task {task_id} has no open question", outcome_of(handle.state) or Outcome.FAILED)
            await handle.answer(answers if answers is not None else await _asked(attendant, handle))
            state = await handle.status()
        attendant.remote.print_state(state, name=task_id)
        return Outcome.COMPLETED

    run(Remote(url=url, headers=headers, machine=machine), body)


async def _asked(attendant: Attendant, handle: TaskHandle) -> dict[str, types.InputResponse]:
    """The answers of the user at the prompt.

    Raises:
        ClientError: A question cannot be asked at a terminal.
    """
    answers: dict[str, types.InputResponse] = {}
    for key, question in handle.questions.items():
        try:
            request = types.ElicitRequest.model_validate(question, by_name=False)
        except ValidationError:
            raise ClientError(f"question {key!r} cannot be asked at a terminal; use --json", Outcome.FAILED) from None
        answers[key] = await attendant.prompter.ask(request.params)
    return answers
