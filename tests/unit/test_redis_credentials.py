"""What gives user and password of the records' Redis: a file, or a provider of the operator's."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import redis

from mcp_celery.errors import ConfigurationError
from mcp_celery.redis_credentials import OffLoop, broker_password, celery_credentials, credentials_of
from mcp_celery.settings import Settings
from tests.support import provider
from tests.support.provider import FILE_VARIABLE

PROVIDER = "tests.support.provider"


def given(found: redis.CredentialProvider | None) -> Any:
    assert found is not None
    return found.get_credentials()


class TestPasswordFile:
    @pytest.mark.parametrize("text", ["pass word", "pass word\n", "pass word\r\n\n"])
    def test_line_breaks_at_the_end_of_a_password_file_do_not_count(self, tmp_path: Path, text: str) -> None:
        (file := tmp_path / "password").write_text(text, newline="")
        assert given(credentials_of(Settings.load(redis_password_file=str(file)))) == ("pass word",)

    def test_a_password_file_is_read_for_each_connection(self, tmp_path: Path) -> None:
        (file := tmp_path / "password").write_text("one")
        found = credentials_of(Settings.load(redis_password_file=str(file), redis_url="redis://app@localhost"))
        assert given(found) == ("app", "one")
        file.write_text("two")
        assert given(found) == ("app", "two")

    @pytest.mark.parametrize(
        ("content", "reason"), [(None, "No such file"), (b"\n", "is empty"), (b"\xff", "it is not UTF-8")]
    )
    def test_a_password_file_that_cannot_be_used_is_named_at_start_and_retried_later(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, reason: str
    ) -> None:
        file = tmp_path / "password"
        if content is not None:
            file.write_bytes(content)
        monkeypatch.setenv("MCP_CELERY_REDIS_PASSWORD_FILE", str(file))
        with pytest.raises(ConfigurationError, match=rf"MCP_CELERY_REDIS_PASSWORD_FILE: .*{reason}"):
            credentials_of(Settings.load())
        with pytest.raises(redis.AuthenticationError, match=reason):  # after which kombu connects again
            given(celery_credentials())


class TestProvider:
    @pytest.mark.parametrize("attribute", ["instance", "make", "FromFile"])
    def test_a_provider_is_an_instance_or_a_factory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attribute: str
    ) -> None:
        (file := tmp_path / "credentials").write_text("app\nsecret")
        monkeypatch.setenv(FILE_VARIABLE, str(file))
        monkeypatch.setenv("MCP_CELERY_REDIS_CREDENTIALS", f"{PROVIDER}:{attribute}")
        found = credentials_of(Settings.load())
        assert given(found) == ("app", "secret")
        assert celery_credentials() is found  # what it caches serves all

    @pytest.mark.parametrize(
        ("spec", "reason"),
        [
            ("no_such_module:provider", "ModuleNotFoundError: No module named 'no_such_module'"),
            (f"{PROVIDER}:nothing", "AttributeError: .*nothing"),
            (f"{PROVIDER}:number", "TypeError"),
            (f"{PROVIDER}:uuid", "str, not a redis.CredentialProvider"),
        ],
    )
    def test_a_provider_that_cannot_be_made_is_named_at_start(
        self, monkeypatch: pytest.MonkeyPatch, spec: str, reason: str
    ) -> None:
        monkeypatch.setattr(provider, "uuid", lambda: "text", raising=False)
        with pytest.raises(ConfigurationError, match=f"MCP_CELERY_REDIS_CREDENTIALS={spec} .*{reason}"):
            credentials_of(Settings.load(redis_credentials=spec))

    def test_without_the_settings_there_are_no_credentials(self) -> None:
        assert credentials_of(Settings.load()) is None
        with pytest.raises(ConfigurationError, match="MCP_CELERY_REDIS_CREDENTIALS"):
            celery_credentials()

    @pytest.mark.anyio
    async def test_a_blocking_provider_does_not_block_the_loop(self) -> None:
        asked: list[int] = []

        class Blocking(redis.CredentialProvider):
            def get_credentials(self) -> tuple[str, str]:
                asked.append(threading.get_ident())
                return "app", "secret"

        assert await OffLoop(Blocking()).get_credentials_async() == ("app", "secret")
        assert asked != [threading.get_ident()]

    @pytest.mark.anyio
    async def test_an_async_provider_is_called_on_the_loop(self) -> None:
        class Async(redis.CredentialProvider):
            async def get_credentials_async(self) -> tuple[str, str]:
                return "app", str(threading.get_ident())

        assert await OffLoop(Async()).get_credentials_async() == ("app", str(threading.get_ident()))

    @pytest.mark.anyio
    async def test_failures_of_a_provider_are_errors_of_redis_py_without_its_text(self) -> None:
        found = credentials_of(Settings.load(redis_credentials=f"{PROVIDER}:Failing"))
        assert found is not None
        with pytest.raises(redis.AuthenticationError, match=r"REDIS_CREDENTIALS gave no .*: LookupError$"):
            await found.get_credentials_async()
        with pytest.raises(redis.AuthenticationError, match=r"REDIS_CREDENTIALS gave no .*: LookupError$") as error:
            found.get_credentials()
        assert error.value.__cause__ is None


@pytest.mark.parametrize("name", ["REDIS_URL", "BROKER_URL"])
def test_kombu_finds_the_password_of_a_unix_socket(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"MCP_CELERY_{name}", "unix://app@/run/redis.sock?password=secret")
    assert given(broker_password()) == ("app", "secret")
    provided = "credential_provider=mcp_celery.redis_credentials%3Abroker_password"
    assert Settings.load().celery_broker_url == f"redis+socket:///run/redis.sock?virtual_host=0&{provided}"
