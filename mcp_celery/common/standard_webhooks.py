"""Webhooks as Standard Webhooks (standardwebhooks.com) has them: secrets, signatures, and the URLs that we send to."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

PREFIX: Final = "whsec_"
MIN_SECRET_BYTES: Final = 24
MAX_SECRET_BYTES: Final = 64
MAX_URL_CHARS: Final = 2_048
HOW_TO_MAKE_A_SECRET: Final = 'make one with: echo "whsec_$(openssl rand -base64 32)"'  # noqa: S105 - it is none
_UNUSABLE: Final = re.compile(r"[^\x21-\x7e]")


def key_of_secret(secret: str) -> bytes:
    """The bytes of a secret in the form ``whsec_`` and base64.

    >>> key_of_secret("whsec_" + "QUFB" * 8)
    b'AAAAAAAAAAAAAAAAAAAAAAAA'

    Raises:
        ValueError: It has another form, or another number of bytes than the standard allows. The text does not show it.
    """
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(PREFIX) or not key:
        raise ValueError(f"expected {PREFIX} and base64; {HOW_TO_MAKE_A_SECRET}")
    if not MIN_SECRET_BYTES <= len(key) <= MAX_SECRET_BYTES:
        raise ValueError(
            f"it has {len(key)} bytes, not {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES}; {HOW_TO_MAKE_A_SECRET}"
        )
    return key


def keys_of_secrets(text: str) -> tuple[bytes, ...]:
    """The bytes of secrets with commas or white space between them, the first one first.

    Raises:
        ValueError: A secret is malformed or listed twice, or there is no secret. The message names it by its number.
    """
    keys: list[bytes] = []
    for number, secret in enumerate(re.split(r"[,\s]+", text.strip(", \r\n\t")), 1):
        if not secret:
            raise ValueError("it holds no secret")
        try:
            key = key_of_secret(secret)
        except ValueError as error:
            raise ValueError(f"secret {number}: {error}") from None
        if key in keys:
            raise ValueError(f"secret {number} is listed twice")
        keys.append(key)
    return tuple(keys)


def signatures(keys: Sequence[bytes], webhook_id: str, timestamp: int, body: bytes) -> str:
    """The header ``webhook-signature``: one signature for each key.

    Args:
        keys: The secrets' bytes.
        webhook_id: The header ``webhook-id``.
        timestamp: The header ``webhook-timestamp``, in seconds since the epoch.
        body: The body as it is sent.
    """
    signed = f"{webhook_id}.{timestamp}.".encode() + body
    digests = (hmac.new(key, signed, hashlib.sha256).digest() for key in keys)
    return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)


def check_url(url: str) -> str:
    """A URL that webhooks may be sent to.

    Raises:
        ValueError: It is not such a URL. The message does not show it, since its path may be a secret.
    """
    if len(url) > MAX_URL_CHARS or _UNUSABLE.search(url):
        raise ValueError(f"expected a URL of at most {MAX_URL_CHARS} characters of ASCII without spaces")
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        parts, host = None, None
    if parts is None or parts.scheme not in ("http", "https") or not host:
        raise ValueError("expected http:// or https:// with a host")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a webhook is authenticated by its signature: remove the user and password")
    if parts.fragment:
        raise ValueError("remove the fragment (from # on): clients do not send it")
    return url


def shown_url(url: str) -> str:
    """Where a webhook goes, as a log line shows it: without the path, which may be a secret.

    >>> shown_url("https://hooks.example:8443/in/s3cret")
    'https://hooks.example:8443'
    """
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
