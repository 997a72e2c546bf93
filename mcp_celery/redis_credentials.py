"""User and password of the records' Redis where they change: asked for anew for each connection.

redis-py, kombu and Celery's result backend each take a :class:`redis.CredentialProvider`. The one that is configured is
made once in a process, so that what it caches serves all of them.
"""

from __future__ import annotations

import asyncio
import importlib
from functools import cache
from pathlib import Path
from typing import Any

from redis import AuthenticationError, CredentialProvider
from redis.credentials import StreamingCredentialProvider, UsernamePasswordCredentialProvider

from mcp_celery.common.import_path import add_current_folder
from mcp_celery.common.redis_url import parse
from mcp_celery.errors import ConfigurationError
from mcp_celery.settings import ENV_PREFIX, Settings

Credentials = tuple[str] | tuple[str, str]
"""A password, or a user and their password."""


class PasswordFile(CredentialProvider):
    """The password that a file holds now.

    Args:
        path: The file. Line breaks at its end do not count.
        username: The ACL user; None for the default user.
    """

    def __init__(self, path: Path, username: str | None) -> None:
        self._path = path
        self._username = username

    def get_credentials(self) -> Credentials:
        """Read the file.

        Raises:
            AuthenticationError: It cannot be read, or it is empty.
        """
        try:
            password = self._path.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise AuthenticationError(f"{ENV_PREFIX}REDIS_PASSWORD_FILE: cannot read {self._path}: {reason}") from None
        if not password:
            raise AuthenticationError(f"{ENV_PREFIX}REDIS_PASSWORD_FILE: {self._path} is empty")
        return (password,) if self._username is None else (self._username, password)


class OffLoop(CredentialProvider):
    """A provider whose errors are redis-py's, and whose blocking calls leave the event loop free.

    Args:
        provider: The provider.
    """

    def __init__(self, provider: CredentialProvider) -> None:
        self._provider = provider
        self._is_async = type(provider).get_credentials_async is not CredentialProvider.get_credentials_async

    def get_credentials(self) -> Credentials:
        """Ask the provider.

        Raises:
            AuthenticationError: It failed.
        """
        try:
            return self._provider.get_credentials()
        except Exception as error:  # noqa: BLE001 - providers raise what their own libraries raise
            raise _failure(error) from None

    async def get_credentials_async(self) -> Credentials:
        """Ask the provider, in a thread if it knows no asyncio.

        Raises:
            AuthenticationError: It failed.
        """
        if not self._is_async:
            return await asyncio.to_thread(self.get_credentials)
        try:
            return await self._provider.get_credentials_async()
        except Exception as error:  # noqa: BLE001 - as above
            raise _failure(error) from None


def _failure(error: Exception) -> AuthenticationError:
    """What a failure is for redis-py, kombu and Celery: they connect again later. A foreign text may show a secret."""
    if isinstance(error, AuthenticationError):
        return error
    return AuthenticationError(f"{ENV_PREFIX}REDIS_CREDENTIALS gave no credentials: {type(error).__name__}")


def credentials_of(settings: Settings) -> CredentialProvider | None:
    """The provider of the credentials of the records' Redis; None where its URL has them.

    Raises:
        ConfigurationError: The password file cannot be read, or the provider cannot be made. The text names the
            setting.
    """
    provider = _provider_of(settings)
    if settings.redis_password_file and provider is not None:
        try:
            provider.get_credentials()
        except AuthenticationError as error:
            raise ConfigurationError(str(error)) from None
    return provider


def celery_credentials() -> CredentialProvider:
    """What kombu and Celery's result backend find by the name in their URLs. They ask each time that they connect.

    Raises:
        ConfigurationError: No credentials are configured in this process, or the provider cannot be made.
    """
    provider = _provider_of(Settings.load())
    if provider is None:
        raise ConfigurationError(f"set {ENV_PREFIX}REDIS_PASSWORD_FILE or {ENV_PREFIX}REDIS_CREDENTIALS")
    return provider


def broker_password() -> CredentialProvider:
    """What kombu finds by the name in the URL of a Unix socket, or of Sentinels, whose password is in ours."""
    settings = Settings.load()
    url = parse(settings.broker_url or settings.redis_url, for_celery=True)
    return UsernamePasswordCredentialProvider(url.username, url.password)


def _provider_of(settings: Settings) -> CredentialProvider | None:
    if settings.redis_password_file:
        return OffLoop(PasswordFile(Path(settings.redis_password_file), parse(settings.redis_url).username))
    return _provider_at(settings.redis_credentials) if settings.redis_credentials else None


@cache
def _provider_at(spec: str) -> CredentialProvider:
    """Import a provider, or what makes one.

    Args:
        spec: ``module:attribute``.
    """
    setting = f"{ENV_PREFIX}REDIS_CREDENTIALS={spec}"
    module, _, attribute = spec.partition(":")
    add_current_folder()
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
        provider: object = found if isinstance(found, CredentialProvider) else found()
    except Exception as error:  # noqa: BLE001 - a module that is imported may raise anything
        # Only the texts of these kinds name just the module and the attribute.
        reason = f": {error}" if isinstance(error, ImportError | AttributeError) else ""
        raise ConfigurationError(f"{setting} cannot be used: {type(error).__name__}{reason}") from None
    if isinstance(provider, StreamingCredentialProvider):
        return provider  # redis-py looks for this class, to authenticate open connections again
    if not isinstance(provider, CredentialProvider):
        raise ConfigurationError(f"{setting} is a {type(provider).__name__}, not a redis.CredentialProvider")
    return OffLoop(provider)
