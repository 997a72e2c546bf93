"""Following a task with a user at the terminal, who watches, answers and interrupts."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress
from typing import Any, Final, Literal, NoReturn, Self
from urllib.parse import urljoin

from rich.console import Console

from mcp_celery.cli.remote.connection import Remote, print_json
from mcp_celery.cli.remote.lines import Lines
from mcp_celery.cli.remote.outcome import EXPECTED, ClientError, Outcome, as_client_error, outcome_of
from mcp_celery.cli.remote.questions import Prompter
from mcp_celery.cli.remote.render import ProgressView, print_error, print_line
from mcp_celery.client import TaskCancelledError, TaskFailedError, TaskGoneError, TaskHandle, TaskState
from mcp_celery.client.extension import PATIENCE_SECONDS

LOOK_SECONDS: Final = 0.5
"""How often the command looks whether the server still answers."""
WHAT_NOW: Final = "\nInterrupted: [c]ancel the task, [d]etach and leave it running, or [w]ait on? [d] "

NO_SUCH_PATH: Final = "Not Found"
"""What the SDK's client says of status 404."""

Choice = Literal["cancel", "detach", "wait"]


class Interruptions:
    """Ctrl-C: heard by who waits for it, else the end of the command. SIGTERM: the end of the command. A context
    manager, for a running loop.

    Attributes:
        terminated: Whether SIGTERM came.
    """

    def __init__(self) -> None:
        self.terminated = False
        self._waiting: list[asyncio.Future[None]] = []
        self._command: asyncio.Task[Any] | None = None

    def __enter__(self) -> Self:
        """Take the signal over, unless it is ignored from the start."""
        self._command = asyncio.current_task()
        self._is_taken = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
        if self._is_taken:
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._on_signal)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._on_sigterm)
        return self

    def __exit__(self, *_: object) -> None:
        """Give it back."""
        if self._is_taken:
            asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)

    def _on_sigterm(self) -> None:
        self.terminated = True
        if self._command:
            self._command.cancel()

    def _on_signal(self) -> None:
        if self._waiting and not self._waiting[-1].done():
            self._waiting[-1].set_result(None)
        elif self._command:
            self._command.cancel()

    async def or_done(self, work: asyncio.Future[Any]) -> bool:
        """Wait for some work, or for Ctrl-C.

        Returns:
            Whether the work is done.
        """
        interrupted = asyncio.get_running_loop().create_future()
        self._waiting.append(interrupted)
        try:
            await asyncio.wait({work, interrupted}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._waiting.remove(interrupted)
        return work.done()


class Attendant:
    """Follows a task for a user.

    Args:
        remote: Its server.
        interruptions: Where Ctrl-C is heard.
    """

    def __init__(self, remote: Remote, interruptions: Interruptions) -> None:
        self.remote = remote
        self._console = Console(stderr=True)
        self._view = ProgressView(self._console)
        self._lines = Lines()
        self._interruptions = interruptions
        self.follows = False
        """Whether there is a task that goes on when the command ends."""
        self.prompter = Prompter(self._console, self._lines, self._view.paused)

    def announce(self, handle: TaskHandle) -> None:
        """Print the id of a new task, so that it can be found again whatever becomes of this command."""
        if not self.remote.machine:
            print_line(self._console, f"Task {handle.task_id}")

    async def finish(self, handle: TaskHandle, *, name: str, each: bool = False) -> Outcome:
        """Follow a task to its end, and print what came of it.

        Args:
            handle: The task.
            name: What files of its result are named after.
            each: Whether each change is printed for machines.

        Returns:
            What came of it, or that it was left running.

        Raises:
            TaskError: Nothing more can be heard of it, or it waits for an answer that it will not get from here.
            MCPError: The server could not be asked to cancel it.
        """
        self.follows = True
        show = self._view.show
        if self.remote.machine:
            show = print_json if each else _show_nothing
        following = asyncio.ensure_future(_follow(handle, show))
        looking = asyncio.ensure_future(self._look_at_connection(handle))
        try:
            with nullcontext() if self.remote.machine else self._view:
                while not await self._interruptions.or_done(following):
                    choice = await self._ask_what_now()
                    if choice == "detach":
                        self._say_how_to_resume(handle)
                        return Outcome.GOES_ON
                    if choice == "cancel":
                        await handle.cancel()
            state = following.result()
        except (Exception, asyncio.CancelledError) as error:
            if not (handle.state.is_final or isinstance(error, TaskGoneError)):
                self._say_how_to_resume(handle)
            raise
        finally:
            following.cancel()
            looking.cancel()
            await asyncio.gather(following, looking, return_exceptions=True)
        if not (self.remote.machine and each):
            self.remote.print_state(state, name=name)
        return outcome_of(state)

    async def _look_at_connection(self, handle: TaskHandle) -> None:
        """Show at once that the server does not answer, for as long as it does not."""
        while not self.remote.machine:
            silent = handle.silent_seconds
            self._view.show_lost(None if silent is None else PATIENCE_SECONDS - silent)
            await asyncio.sleep(LOOK_SECONDS)

    async def _ask_what_now(self) -> Choice:
        if not self._lines.is_terminal:
            return "detach"
        with self._view.paused():
            asking = asyncio.ensure_future(self.prompter.choose(WHAT_NOW))
            answer = await asking if await self._interruptions.or_done(asking) else None
            asking.cancel()
        match answer:
            case "c" | "cancel":
                return "cancel"
            case "w" | "wait":
                self.prompter.repeat()
                return "wait"
            case _:
                return "detach"

    def _say_how_to_resume(self, handle: TaskHandle) -> None:
        if handle.task_id:
            command = self.remote.resume_command(handle.task_id)
            print_line(self._console, f"The task continues. To follow it:\n  {command}")


def _show_nothing(_: TaskState) -> None:
    pass


async def _follow(handle: TaskHandle, show: Callable[[TaskState], None]) -> TaskState:
    show(handle.state)
    if not handle.state.is_final:
        handle.on_status_change(show)
    with suppress(TaskFailedError, TaskCancelledError):  # which the state shows, too
        await handle.result()
    return handle.state


def run(remote: Remote, body: Callable[[Attendant], Awaitable[Outcome]], *, timeout: float | None = None) -> NoReturn:
    """Run a command of the client, and end the process with its outcome.

    Args:
        remote: The server.
        body: The command.
        timeout: How long it may take, in seconds; None: any time. A task that it follows goes on.
    """
    # The SDK logs what it goes on from; the command itself prints what ends it.
    logging.getLogger().addHandler(logging.NullHandler())

    interruptions = Interruptions()

    async def main() -> Outcome:
        with interruptions:
            attendant = Attendant(remote, interruptions)
            try:
                async with asyncio.timeout(timeout):
                    return await body(attendant)
            except TimeoutError:
                if attendant.follows:
                    return Outcome.GOES_ON
                if timeout is None:
                    raise
                raise ClientError(
                    f"no answer from {remote.address} within {timeout:g} s", Outcome.UNREACHABLE
                ) from None

    try:
        outcome = asyncio.run(main())
    except (ClientError, *EXPECTED) as error:
        told = as_client_error(error)
        print_error(_with_address(told, remote))
        outcome = told.outcome
    except (asyncio.CancelledError, KeyboardInterrupt):
        print_line(Console(stderr=True), "Terminated" if interruptions.terminated else "Interrupted")
        outcome = Outcome.TERMINATED if interruptions.terminated else Outcome.INTERRUPTED
    sys.exit(outcome)


def _with_address(error: ClientError, remote: Remote) -> str:
    """The error's text; where the server cannot be reached, with its host and port; where it has no such path, with
    the URL.
    """
    text = str(error)
    if text == NO_SUCH_PATH:
        return f"{remote.url} is no MCP endpoint (404 Not Found): most servers have it at {urljoin(remote.url, '/mcp')}"
    if error.outcome is not Outcome.UNREACHABLE or remote.address in text:
        return text
    return f"cannot reach {remote.address}: {text}"
