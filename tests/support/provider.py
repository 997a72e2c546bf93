"""Credential providers of redis-py, as operators write them, for processes of tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import redis

FILE_VARIABLE: Final = "TEST_CREDENTIALS_FILE"
"""Names a file with a user and a password, a line each."""


class FromFile(redis.CredentialProvider):
    """Gives what the file holds now; counts in a file beside it how often it was asked."""

    def get_credentials(self) -> tuple[str, str]:
        path = Path(os.environ[FILE_VARIABLE])
        with path.with_suffix(".asked").open("a") as asked:
            asked.write(f"{os.getpid()}\n")
        username, password = path.read_text().splitlines()
        return username, password


instance = FromFile()


def make() -> redis.CredentialProvider:
    """A function that makes one."""
    return FromFile()


class Failing(redis.CredentialProvider):
    """Cannot reach what it asks."""

    def get_credentials(self) -> tuple[str, str]:
        raise LookupError("the vault said: s3cret-of-the-vault")


number = 7
"""No provider."""
