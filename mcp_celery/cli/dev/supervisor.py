"""Runs child processes and sees to it that none outlives this one. It knows nothing of MCP, Celery or stores.

Each child leads a session of its own, so a Ctrl-C in the terminal reaches only the supervisor, which then ends the
children in the order and time of `STEPS`; and a child's whole process group can be killed, with what it has forked.
Where the supervisor is killed itself, a watchdog process does the same (`mcp_celery.cli.dev.watchdog`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from mcp_celery.cli.dev import watchdog
from mcp_celery.cli.dev.watchdog import STEPS, send_step

LONGEST_LINE: Final = 64 * 1024
"""Bytes. A child that prints without line ends is shown in pieces of this size."""
LAST_WORDS_SECONDS: Final = 1.0
"""How long to read on after a child's end: something it started may hold its output open for ever."""
T = TypeVar("T")

CANCEL_AGAIN_SECONDS: Final = 0.5
STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """A program to start.

    Args:
        name: What the child is called in front of its lines.
        argv: Program and arguments.
        env: Variables set on top of this process's own.
        urgent_signal: Sent where SIGTERM was of no use for some seconds.
        pass_fds: Descriptors that the child inherits.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    urgent_signal: signal.Signals = signal.SIGTERM
    pass_fds: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ChildExit:
    """The unexpected end of a child.

    Args:
        name: The child's name.
        returncode: Exit status, or the negated number of the signal that ended it.
    """

    name: str
    returncode: int

    def __str__(self) -> str:
        if self.returncode >= 0:
            return f"{self.name} ended unexpectedly with exit status {self.returncode}"
        return f"{self.name} was ended unexpectedly by signal {_signal_name(-self.returncode)}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


class Supervisor:
    """Starts children, passes their output on line by line, and ends them all.

    An async context manager: on leaving, however that happens, every child and all they started is gone.

    Args:
        on_line: Called with a child's name and one line of its output, without the line's end.
        if_killed: Command that the watchdog runs, after it has ended the children, where this process was killed.
        grace_seconds: How much longer than `STEPS` says a child may take that was asked to end.
    """

    def __init__(
        self, on_line: Callable[[str, str], None], *, if_killed: Sequence[str] = (), grace_seconds: float = 0.0
    ) -> None:
        self._grace_seconds = grace_seconds
        self._on_line = on_line
        self._if_killed = tuple(if_killed)
        self._children: dict[asyncio.Task[None], tuple[asyncio.subprocess.Process, ChildSpec]] = {}
        self._hurry = asyncio.Event()
        self._stopping = False
        self._asked = set[asyncio.Task[None]]()
        self._exits: asyncio.Queue[ChildExit] = asyncio.Queue()
        self._watchdog: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Self:
        """Start the watchdog."""
        # Isolated and without site-packages: it must work whatever this environment holds, and start at once.
        self._watchdog = subprocess.Popen(  # noqa: ASYNC220 - returns within milliseconds
            [sys.executable, "-I", "-S", str(Path(watchdog.__file__)), *self._if_killed],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End every child."""
        await self.stop()
        self._tell_watchdog(".")
        if self._watchdog and self._watchdog.stdin:
            self._watchdog.stdin.close()
            await asyncio.to_thread(self._watchdog.wait)

    async def start(self, spec: ChildSpec) -> None:
        """Start a child.

        Args:
            spec: What to start.

        Raises:
            OSError: The program cannot be run.
        """
        # A pipe of our own: asyncio's may keep `wait()` waiting for as long as any process holds the output open.
        read_end, write_end = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *spec.argv,
                stdin=subprocess.DEVNULL,
                stdout=write_end,
                stderr=subprocess.STDOUT,
                env={**os.environ, **spec.env},
                start_new_session=True,
                pass_fds=spec.pass_fds,
            )
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        self._tell_watchdog(f"+{process.pid} {int(spec.urgent_signal)}")
        lines = asyncio.create_task(self._pass_lines_on(spec.name, read_end))
        watch = asyncio.create_task(self._watch(spec, process, lines))
        self._children[watch] = (process, spec)

    async def first_exit(self) -> ChildExit:
        """Wait until a child ends that was not asked to."""
        return await self._exits.get()

    def hurry(self) -> None:
        """Take the next step in ending the children now, for people who signal a second time."""
        self._hurry.set()

    async def stop(self) -> None:
        """End all children, by `STEPS`; returns when every process of theirs is gone."""
        self._stopping = True
        await self._end(set(self._children))

    async def end(self, *names: str) -> None:
        """End some children, as :meth:`stop`; :meth:`first_exit` does not report them.

        Args:
            *names: The names of their specs. A name of no child that runs is ignored.
        """
        chosen = {watch for watch, (_, spec) in self._children.items() if spec.name in names}
        self._asked |= chosen
        await self._end(chosen)

    async def _end(self, chosen: set[asyncio.Task[None]]) -> None:
        self._hurry.clear()
        for step in STEPS:
            chosen &= self._children.keys()
            if not chosen:
                return
            for watch in chosen:
                process, spec = self._children[watch]
                send_step(step, process.pid, spec.urgent_signal)
            hurry = asyncio.create_task(self._hurry.wait())
            gone = asyncio.create_task(asyncio.wait(chosen))
            seconds = step.seconds + (self._grace_seconds if step.name == "ask" else 0.0)
            await asyncio.wait({hurry, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            hurry.cancel()
            gone.cancel()
            self._hurry.clear()
        if chosen := chosen & self._children.keys():
            await asyncio.wait(chosen)

    async def _watch(self, spec: ChildSpec, process: asyncio.subprocess.Process, lines: asyncio.Task[None]) -> None:
        """Follow one child to its end, and clear away what it leaves."""
        returncode = await process.wait()
        # Whatever it forked has lost its parent. The group's number is not given to others while a member lives.
        send_step(STEPS[-1], process.pid, spec.urgent_signal)
        self._tell_watchdog(f"-{process.pid}")
        await asyncio.wait({lines}, timeout=LAST_WORDS_SECONDS)
        lines.cancel()
        watch = asyncio.current_task()
        assert watch is not None  # noqa: S101 - this coroutine is only ever run as a task
        if not self._stopping and watch not in self._asked:
            self._exits.put_nowait(ChildExit(spec.name, returncode))
        self._asked.discard(watch)
        del self._children[watch]

    async def _pass_lines_on(self, name: str, read_end: int) -> None:
        """Cut a child's output into lines; only whole lines are passed on, so those of two children never mix."""
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb")
        )
        pending = b""
        try:
            while chunk := await reader.read(LONGEST_LINE):
                *whole, pending = (pending + chunk).split(b"\n")
                if len(pending) >= LONGEST_LINE:
                    whole, pending = [*whole, pending], b""
                for line in whole:
                    self._on_line(name, _text(line))
        finally:
            if pending:
                self._on_line(name, _text(pending))
            transport.close()

    def _tell_watchdog(self, order: str) -> None:
        if not self._watchdog or not self._watchdog.stdin:
            return
        try:
            self._watchdog.stdin.write(f"{order}\n".encode())
        except BrokenPipeError:
            # It was killed. The children are still this process's, and are ended here as usual.
            return


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r")


async def unless_interrupted(work: Coroutine[Any, Any, T], *interruptions: Coroutine[Any, Any, None]) -> T:
    """Wait for the work, or for the first interruption, whichever comes first; the others are cancelled.

    Args:
        work: What is to be done.
        *interruptions: They end by raising, and their error is raised here.

    Returns:
        What the work returned.
    """
    main = asyncio.ensure_future(work)
    others = [asyncio.ensure_future(one) for one in interruptions]
    try:
        await asyncio.wait({main, *others}, return_when=asyncio.FIRST_COMPLETED)
        for other in others:
            if other.done():
                other.result()
        return await main
    finally:
        await _cancel({main, *others})


async def _cancel(tasks: set[asyncio.Future[Any]]) -> None:
    """Cancel tasks and wait for their end."""
    pending = tasks
    while pending:
        # Again and again: `asyncio.wait_for` of Python 3.11 loses a cancellation that comes just as it is done.
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN_SECONDS)
    await asyncio.gather(*tasks, return_exceptions=True)


class StopSignals:
    """SIGINT, SIGTERM and SIGHUP as an event; a context manager, to be entered in a running loop.

    The first of them only sets the event, every further one calls ``on_repeat``.
    """

    on_repeat: Callable[[], None] | None = None

    def __init__(self) -> None:
        self._received = asyncio.Event()

    async def wait(self) -> None:
        """Wait for the first signal."""
        await self._received.wait()

    def __enter__(self) -> Self:
        """Take the signals over."""
        loop = asyncio.get_running_loop()
        # What is ignored from the start, as `nohup` has it, stays so.
        self._taken = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        for number in self._taken:
            loop.add_signal_handler(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back."""
        for number in self._taken:
            asyncio.get_running_loop().remove_signal_handler(number)

    def _on_signal(self) -> None:
        if self._received.is_set() and self.on_repeat:
            self.on_repeat()
        self._received.set()
