"""The supervisor with real child processes: what they print arrives whole, and none of them outlives it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from pathlib import Path

import psutil
import pytest

from mcp_celery.cli.dev import supervisor as supervisor_module
from mcp_celery.cli.dev import watchdog
from mcp_celery.cli.dev.supervisor import ChildExit, ChildSpec, StopSignals, Supervisor, unless_interrupted
from mcp_celery.cli.dev.watchdog import Step
from tests.support.waiting import eventually_sync

GIVE_UP_SECONDS = 120.0
SHORT_STEPS = (Step("ask", 0.2), Step("urge", 0.2), Step("kill", 5.0))

SLEEP = "import time; print('ready', flush=True); time.sleep(600)"
IGNORE_TERM = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEP
STOP_AT_QUIT = f"""
import signal, sys
signal.signal(signal.SIGQUIT, lambda *_: (print("quit", flush=True), sys.exit(0)))
{IGNORE_TERM}"""
LEAVE_A_CHILD = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {IGNORE_TERM!r}], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
"""


class Lines:
    """What children have printed, and a wait for it."""

    def __init__(self) -> None:
        self.all: list[tuple[str, str]] = []
        self._news = asyncio.Event()

    def __call__(self, name: str, line: str) -> None:
        self.all.append((name, line))
        self._news.set()

    def of(self, name: str) -> list[str]:
        return [line for who, line in self.all if who == name]

    async def until(self, name: str, wanted: Callable[[list[str]], bool] = bool) -> list[str]:
        async with asyncio.timeout(GIVE_UP_SECONDS):
            while not wanted(self.of(name)):
                self._news.clear()
                await self._news.wait()
        return self.of(name)


def python(code: str, name: str = "child", urgent_signal: signal.Signals = signal.SIGTERM) -> ChildSpec:
    return ChildSpec(name=name, argv=[sys.executable, "-c", code], env={}, urgent_signal=urgent_signal)


def runs(pid: int) -> bool:
    """Whether a process runs; one that waits to be reaped, by whatever has become its parent, does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until_gone(pids: list[int]) -> None:
    """Wait for the end of processes that need not be our children."""
    eventually_sync(lambda: not any(runs(pid) for pid in pids), what=f"the processes {pids} end")


@pytest.fixture(autouse=True)
def _no_process_stays() -> Generator[None]:
    """Fail where a test leaves a process running."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    for child in left:
        child.kill()
    assert left == []


@pytest.fixture
def short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait long for children that do not listen."""
    monkeypatch.setattr(supervisor_module, "STEPS", SHORT_STEPS)
    monkeypatch.setattr(watchdog, "STEPS", SHORT_STEPS)


@pytest.mark.smoke
def test_lines_arrive_whole_however_they_were_written() -> None:
    code = """
import sys, time
for number in range(50):
    for piece in (sys.argv[0], "-", str(number), "\\n"):
        sys.stdout.write(piece); sys.stdout.flush()
    sys.stderr.write("err\\n")
sys.stdout.write("no end")
"""

    async def run() -> list[tuple[str, str]]:
        lines = Lines()
        async with Supervisor(lines) as supervisor:
            await supervisor.start(python(code, "a"))
            await supervisor.start(python(code, "b"))
            for name in ("a", "b"):
                await lines.until(name, lambda all_of: "no end" in all_of)
        return lines.all

    lines = asyncio.run(run())
    for name in ("a", "b"):
        printed = [line for who, line in lines if who == name]
        assert [line for line in printed if line != "err"] == [*(f"-c-{number}" for number in range(50)), "no end"]
        assert printed.count("err") == 50


@pytest.mark.usefixtures("short_steps")
def test_some_children_are_ended_and_the_others_go_on() -> None:
    async def run() -> ChildExit:
        lines = Lines()
        async with Supervisor(lines) as supervisor:
            await supervisor.start(python(IGNORE_TERM, "a"))
            await supervisor.start(python(SLEEP, "b"))
            await supervisor.start(python("print('ready'); input()", "c"))
            for name in ("a", "b"):
                await lines.until(name)
            ended = await supervisor.first_exit()  # of c, by itself
            await supervisor.end("a", "nobody")
            await supervisor.start(python("raise SystemExit(3)", "a"))
            again = await supervisor.first_exit()
            assert again == ChildExit("a", 3), "the end of the first a was asked for"
            return ended

    assert asyncio.run(run()) == ChildExit("c", 1)


def test_bytes_that_are_no_text_and_lines_without_an_end_are_passed_on() -> None:
    code = "import os; os.write(1, b'\\xff\\r\\n'); os.write(1, b'x' * 200_000)"

    async def run() -> list[str]:
        lines = Lines()
        async with Supervisor(lines) as supervisor:
            await supervisor.start(python(code))
            return await lines.until("child", lambda found: sum(map(len, found)) == 200_001)

    first, *pieces = asyncio.run(run())
    assert first == "\N{REPLACEMENT CHARACTER}"
    assert len(pieces) > 1


def test_children_have_sessions_of_their_own_and_our_environment() -> None:
    code = "import os, time; print(os.getsid(0) == os.getpid(), os.environ['ADDED'], flush=True); time.sleep(600)"
    spec = ChildSpec(name="child", argv=[sys.executable, "-c", code], env={"ADDED": "value"})

    async def run() -> list[str]:
        lines = Lines()
        async with Supervisor(lines) as supervisor:
            await supervisor.start(spec)
            return await lines.until("child")

    assert asyncio.run(run()) == ["True value"]


def test_a_descriptor_is_passed_to_the_child() -> None:
    read_end, write_end = os.pipe()
    code = f"import os; os.write({write_end}, b'inherited')"
    spec = ChildSpec(name="child", argv=[sys.executable, "-c", code], env={}, pass_fds=(write_end,))

    async def run() -> None:
        async with Supervisor(Lines()) as supervisor:
            await supervisor.start(spec)
            await supervisor.first_exit()

    asyncio.run(run())
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        assert pipe.read() == b"inherited"


@pytest.mark.usefixtures("short_steps")
def test_a_child_that_ignores_term_is_killed() -> None:
    async def run() -> None:
        lines = Lines()
        async with Supervisor(lines) as supervisor:
            await supervisor.start(python(IGNORE_TERM))
            await lines.until("child")

    asyncio.run(run())


@pytest.mark.smoke
@pytest.mark.usefixtures("short_steps")
def test_the_urgent_signal_comes_before_the_kill() -> None:
    async def run() -> list[str]:
        lines = Lines()
        async with Supervisor(lines) as supervisor:
            await supervisor.start(python(STOP_AT_QUIT, urgent_signal=signal.SIGQUIT))
            await lines.until("child")
        return lines.of("child")

    assert asyncio.run(run()) == ["ready", "quit"]


def test_a_second_signal_shortens_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    long_steps = tuple(Step(step.name, 600.0) for step in SHORT_STEPS)
    monkeypatch.setattr(supervisor_module, "STEPS", long_steps)

    async def run() -> None:
        lines = Lines()
        async with Supervisor(lines) as supervisor:
            await supervisor.start(python(IGNORE_TERM))
            await lines.until("child")
            stopping = asyncio.create_task(supervisor.stop())
            while not stopping.done():
                supervisor.hurry()
                await asyncio.wait({stopping}, timeout=0.05)

    asyncio.run(asyncio.wait_for(run(), GIVE_UP_SECONDS))


@pytest.mark.smoke
def test_an_unexpected_end_is_reported_with_its_status() -> None:
    async def run() -> ChildExit:
        async with Supervisor(Lines()) as supervisor:
            await supervisor.start(python(SLEEP, "other"))
            await supervisor.start(python("raise SystemExit(3)"))
            return await supervisor.first_exit()

    ended = asyncio.run(run())
    assert ended == ChildExit("child", 3)
    assert str(ended) == "child ended unexpectedly with exit status 3"
    assert str(ChildExit("child", -9)) == "child was ended unexpectedly by signal SIGKILL"


def test_processes_that_a_dead_child_had_started_are_killed() -> None:
    async def run() -> int:
        lines = Lines()
        async with Supervisor(lines) as supervisor:
            await supervisor.start(python(LEAVE_A_CHILD))
            grandchild = int((await lines.until("child"))[0])
            await supervisor.first_exit()
            return grandchild

    wait_until_gone([asyncio.run(run())])


@pytest.mark.smoke
def test_a_program_that_does_not_exist_leaves_nothing() -> None:
    async def run() -> None:
        async with Supervisor(Lines()) as supervisor:
            await supervisor.start(python(SLEEP))
            await supervisor.start(ChildSpec(name="missing", argv=["/nonexistent/program"], env={}))

    with pytest.raises(FileNotFoundError):
        asyncio.run(run())


def test_children_end_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    told = tmp_path / "told"
    program = f"""
import asyncio, sys
from mcp_celery.cli.dev.supervisor import ChildSpec, Supervisor
async def main():
    command = [sys.executable, "-c", "open({str(told)!r}, 'w').close()"]
    async with Supervisor(lambda name, line: print(line, flush=True), if_killed=command) as supervisor:
        code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
        await supervisor.start(ChildSpec(name="child", argv=[sys.executable, "-c", code], env={{}}))
        await asyncio.sleep(600)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        started = [one.pid for one in psutil.Process(parent.pid).children()]
        assert child in started
        assert len(started) == 2, "the child and the watchdog"
        parent.kill()
    wait_until_gone(started)
    assert told.exists()


@pytest.mark.smoke
@pytest.mark.usefixtures("short_steps")
def test_the_watchdog_kills_children_that_ignore_the_signal() -> None:
    with subprocess.Popen([sys.executable, "-c", IGNORE_TERM], stdout=subprocess.PIPE, start_new_session=True) as child:
        assert child.stdout
        child.stdout.readline()
        # Reaped at once, as init would do it: a zombie is still there for who only knows its number.
        reaper = threading.Thread(target=child.wait)
        reaper.start()
        watchdog.end_groups({child.pid: signal.SIGTERM})
        reaper.join()
    assert child.returncode == -signal.SIGKILL


def test_children_are_ended_without_the_watchdog_too() -> None:
    async def run() -> None:
        lines = Lines()
        before = {one.pid for one in psutil.Process().children()}
        async with Supervisor(lines) as supervisor:
            (dog,) = (one for one in psutil.Process().children() if one.pid not in before)
            dog.kill()
            await supervisor.start(python(SLEEP))
            await lines.until("child")

    asyncio.run(run())


def test_the_first_signal_asks_children_to_end_and_the_next_ones_shorten_the_wait() -> None:
    async def run() -> None:
        again = asyncio.Event()
        with StopSignals() as signals:
            signals.on_repeat = again.set
            os.kill(os.getpid(), signal.SIGTERM)
            await signals.wait()
            assert not again.is_set()
            os.kill(os.getpid(), signal.SIGINT)
            await again.wait()

    asyncio.run(asyncio.wait_for(run(), GIVE_UP_SECONDS))


@pytest.mark.smoke
def test_work_is_completed_or_interrupted() -> None:
    cancelled: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append("forever")
            raise

    async def answer() -> int:
        await asyncio.sleep(0)
        return 42

    async def fail() -> None:
        await asyncio.sleep(0)
        raise LookupError("interrupted")

    async def deaf_at_first() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append("deaf")
        await asyncio.Event().wait()

    assert asyncio.run(unless_interrupted(answer(), forever())) == 42
    assert asyncio.run(unless_interrupted(answer(), deaf_at_first())) == 42
    with pytest.raises(LookupError, match="interrupted"):
        asyncio.run(unless_interrupted(forever(), fail()))
    assert cancelled == ["forever", "deaf", "forever"]
