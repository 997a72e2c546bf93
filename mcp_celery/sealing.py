"""Stores texts of a task, sealed or as they are.

A sealed text can neither be read nor changed where it is stored. It opens only for its purpose and in its place: both
are sealed with it, so a text that is copied elsewhere is refused. Values that scripts have to read are signed instead.
Each purpose has keys of its own.
"""

from __future__ import annotations

import functools
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final, Literal, Protocol, cast

from mcp_celery.common.formats import NewerFormatError
from mcp_celery.context import TaskContextSnapshot
from mcp_celery.errors import SnapshotUnreadableError

Purpose = Literal["request", "question", "answer", "state", "status", "error", "result"]
"""What a text is: the creating request, a question, an answer, what a job keeps for the next one, a status message, an
error, a result.
"""
Place = Sequence[str | int]

SETTING: Final = "MCP_CELERY_ENCRYPTION_KEYS"
_SEALED: Final = "v1."
"""Opens every sealed text. All others here are JSON, which never begins so."""
_SIGNATURE_HEADER: Final = "mcp_celery_signature"
_KEY_NAME_CHARS: Final = 12
_REMEMBERED_CHARS: Final = 4_096
"""The longest text of which it is remembered whether its signature is genuine."""
_FORM_OF_0_1_0: Final = "mcp-celery/snapshot/1"
"""Opened every snapshot that 0.1.0 sealed."""


class Cipher(Protocol):
    """Authenticated encryption with a ring of keys; the SDK's ``RequestStateCodec`` is one."""

    def seal(self, payload: bytes) -> str:
        """Encrypt with the newest key."""
        ...

    def unseal(self, token: str) -> bytes:
        """Decrypt with whichever key it was sealed with. Raises an error that quotes nothing of the token."""
        ...


def is_sealed(stored: str) -> bool:
    """Whether a stored text looks like a sealed one."""
    return stored.startswith(_SEALED)


class SealError(ValueError):
    """A stored text is not one that this process, or one with the same keys, has sealed for its place."""


@dataclass(frozen=True)
class Sealing:
    """Seals texts, and opens what it sealed. Signs values that stay readable, and checks what it signed.

    Args:
        ciphers: One for each purpose, with keys of its own. Empty: texts are kept as they are, and nothing is signed.
        accept_unsealed: Whether what is neither sealed nor signed is accepted although there are keys, unless it is a
            request: 0.1.0 sealed requests alone.
        signing_keys: What records are signed with: one for each key of the ring, the newest first.
        plain_for_servers: Whether what a worker writes for servers is kept as it is, so that those of 0.1.0 read it.
    """

    ciphers: Mapping[Purpose, Cipher] = field(default_factory=lambda: MappingProxyType({}))
    accept_unsealed: bool = False
    signing_keys: tuple[bytes, ...] = ()
    plain_for_servers: bool = False

    @property
    def is_on(self) -> bool:
        """Whether there are keys."""
        return bool(self.ciphers)

    def seals(self, purpose: Purpose) -> bool:
        """Whether texts of a purpose are sealed."""
        return self.is_on and (purpose in ("request", "state") or not self.plain_for_servers)

    def seal(self, purpose: Purpose, place: Place, text: str) -> str:
        """The text to store.

        Args:
            purpose: What it is.
            place: Where alone it may be opened.
            text: JSON.
        """
        if not self.seals(purpose):
            return text
        return self.ciphers[purpose].seal(f"{_where(purpose, place)}{text}".encode())

    def open(self, purpose: Purpose, place: Place, stored: str) -> str:
        """The text in a stored one.

        Raises:
            SealError: It was changed, sealed for another place or with other keys; or it is sealed and there are no
                keys, or it is not and there are.
        """
        if not self.ciphers:
            if is_sealed(stored):
                raise SealError(f"it is sealed, and this process has no {SETTING}")
            return stored
        if not is_sealed(stored):
            if self.accept_unsealed and purpose != "request":
                return stored
            raise SealError(f"it is not sealed: it was written without {SETTING}, or by 0.1.0")
        try:
            opened = self.ciphers[purpose].unseal(stored)
        except Exception as error:  # noqa: BLE001 - whatever it is: what cannot be opened is not used
            raise SealError(f"{SETTING} do not open it ({type(error).__name__}: {error})") from None
        where = _where(purpose, place).encode()
        if not opened.startswith(where):
            raise SealError("it was sealed for another place")
        return opened[len(where) :].decode()

    def sign(self, values: Sequence[str]) -> str:
        """The signature of values (HMAC-SHA256), to store beside them. Needs keys."""
        return _signature(self.signing_keys[0], _unambiguous(values))

    def require_signed(self, values: Sequence[str], signature: str | None) -> None:
        """Refuse values that no process with one of the keys has signed. Without keys each is accepted.

        Args:
            values: What :meth:`sign` was given.
            signature: What is stored beside them, None for nothing.

        Raises:
            SealError: They are not signed, or were changed.
        """
        if not self.ciphers or (signature is None and self.accept_unsealed):
            return
        if signature is None:
            raise SealError(f"it is not signed: it was written without {SETTING}, or by 0.1.0")
        if not _is_one_of(self.signing_keys, _unambiguous(values), signature):
            raise SealError(f"its signature is not one with {SETTING}, or its fixed fields were changed")


@dataclass(frozen=True, slots=True)
class SnapshotCodec:
    """Writes snapshots, and reads what it wrote.

    Args:
        sealing: Seals them, and the access token with them. Without keys they are kept as they are, without the token.
        earlier: What 0.1.0 sealed them with.
    """

    sealing: Sealing = Sealing()
    earlier: Cipher | None = None

    @property
    def of_workers(self) -> SnapshotCodec:
        """The same for workers. While they accept what is not sealed, servers of 0.1.0 read what they write."""
        return replace(self, sealing=replace(self.sealing, plain_for_servers=self.sealing.accept_unsealed))

    def write(self, snapshot: TaskContextSnapshot, place: Place) -> str:
        """The text to store.

        Args:
            snapshot: The creating request and its context.
            place: Where alone it may be read: the name of its key, and what never changes of the task.
        """
        return self.sealing.seal("request", place, snapshot.to_json(with_token=self.sealing.is_on))

    def read(self, stored: bytes, place: Place) -> TaskContextSnapshot:
        """A stored snapshot.

        Args:
            stored: What :meth:`write` gave, empty for a snapshot that is gone.
            place: Where it was found.

        Raises:
            SnapshotUnreadableError: It is gone, damaged, another task's, sealed with a key that is not known here, or
                not sealed although there are keys.
        """
        if not stored:
            raise SnapshotUnreadableError("it is gone")
        try:
            return _parsed(self._opened(stored.decode(), place))
        except SealError as error:
            raise SnapshotUnreadableError(str(error)) from None
        except UnicodeDecodeError:
            raise SnapshotUnreadableError("it is not a task context snapshot") from None

    def _opened(self, stored: str, place: Place) -> str:
        try:
            return self.sealing.open("request", place, stored)
        except SealError:
            if self.earlier is None or not is_sealed(stored):
                raise
            text = _sealed_by_0_1_0(self.earlier, stored, str(place[0]))
            if text is None:
                raise
            return text


def _sealed_by_0_1_0(cipher: Cipher, stored: str, place: str) -> str | None:
    """The text in a snapshot that 0.1.0 sealed for a place; None for every other text."""
    try:
        opened = cipher.unseal(stored)
    except Exception:  # noqa: BLE001 - the caller raises why this release cannot open it
        return None
    form, found, *rest = opened.decode().split("\n", 2)
    return rest[0] if (form, found) == (_FORM_OF_0_1_0, place) and rest else None


def _parsed(text: str) -> TaskContextSnapshot:
    try:
        return TaskContextSnapshot.from_json(text)
    except NewerFormatError as error:
        raise SnapshotUnreadableError(str(error)) from None
    except ValueError:
        raise SnapshotUnreadableError("it is not a task context snapshot") from None


UNSEALED: Final = SnapshotCodec()
"""Texts are kept as they are, and snapshots without access tokens."""


@dataclass(frozen=True, slots=True)
class MessageSigner:
    """Signs the messages of jobs (HMAC-SHA256), so that only processes with the keys can have a job run.

    Args:
        keys: One for each key of the ring, the newest first. Empty: messages are not signed, and each is accepted.
        accept_unsigned: Whether a message without a signature is accepted: 0.1.0 signed none.
    """

    keys: tuple[bytes, ...] = ()
    accept_unsigned: bool = False

    def sign(self, *parts: str | int) -> str | None:
        """The signature of a message's parts; None without keys."""
        return _signature(self.keys[0], _joined(parts)) if self.keys else None

    @property
    def key_names(self) -> tuple[str, ...]:
        """A short name of each key, by which two processes see whether they have the same: it cannot be turned back."""
        return tuple(_signature(key, "mcp-celery/name of a key")[:_KEY_NAME_CHARS] for key in self.keys)

    def is_genuine(self, signature: object, *parts: str | int) -> bool:
        """Whether a process with one of the keys signed these parts.

        Args:
            signature: What the message has, None for nothing.
            parts: What :meth:`sign` was given.
        """
        if not self.keys or (signature is None and self.accept_unsigned):
            return True
        return isinstance(signature, str) and _is_one_of(self.keys, _joined(parts), signature)

    def headers(self, namespace: str, arguments: Mapping[str, object], retries: int) -> dict[str, str]:
        """The headers that sign a job's message; none without keys.

        Args:
            namespace: The server's namespace.
            arguments: The job's keyword arguments.
            retries: Celery's count of retries.
        """
        signature = self.sign(*_signed_parts(namespace, arguments, retries))
        return {} if signature is None else {_SIGNATURE_HEADER: signature}

    def accepts(self, headers: Any, namespace: str, arguments: object, retries: int) -> bool:
        """Whether a process with one of the keys published a job's message. Without keys each is accepted.

        Args:
            headers: What has the message's headers, and ``get``.
            namespace: The server's namespace.
            arguments: The job's keyword arguments, which may be anything where the message is forged.
            retries: Celery's count of retries.
        """
        if not self.keys:
            return True
        if not isinstance(arguments, Mapping):
            return False
        parts = _signed_parts(namespace, cast("Mapping[str, object]", arguments), retries)
        return self.is_genuine(headers.get(_SIGNATURE_HEADER), *parts)


def _signed_parts(namespace: str, arguments: Mapping[str, object], retries: int) -> tuple[str, ...]:
    return (namespace, *(str(arguments.get(name)) for name in ("key", "attempt", "leg")), str(retries))


def _where(purpose: Purpose, place: Place) -> str:
    """The prefix of a sealed text. It holds its own length, so that no prefix is the beginning of another."""
    where = _unambiguous([purpose, *map(str, place)])
    return f"{len(where)}\n{where}\n"


def _unambiguous(values: Sequence[str]) -> str:
    """Values as one text, which no others give. This is done for each record that is read, and is faster than JSON."""
    lines = "\n".join(values)
    return lines if lines.count("\n") == len(values) - 1 else json.dumps(values)


def _joined(parts: Sequence[str | int]) -> str:
    return "\n".join(map(str, parts))


def _signature(key: bytes, text: str) -> str:
    signing = _keyed(key).copy()
    signing.update(text.encode(errors="surrogatepass"))  # a forged message may hold what no UTF-8 is
    return signing.hexdigest()


@functools.lru_cache(maxsize=64)
def _keyed(key: bytes) -> hmac.HMAC:
    """An HMAC with its key. Copying it costs half as much as creating one."""
    return hmac.new(key, None, "sha256")


def _is_one_of(keys: tuple[bytes, ...], text: str, signature: str) -> bool:
    """Whether a signature of a text was made with one of the keys."""
    if not signature.isascii():
        return False
    is_short = len(text) + len(signature) <= _REMEMBERED_CHARS
    return (_is_known_as_made_with if is_short else _is_made_with)(keys, text, signature)


def _is_made_with(keys: tuple[bytes, ...], text: str, signature: str) -> bool:
    return any(hmac.compare_digest(_signature(key, text), signature) for key in keys)


_is_known_as_made_with = functools.lru_cache(maxsize=1_024)(_is_made_with)
"""The same, remembered: a worker checks each message twice, and a server reads a task's record again and again."""


UNSIGNED: Final = MessageSigner()
"""Messages are not signed."""
UNSIGNED_MESSAGE: Final = f"its message is not signed with {SETTING} of this worker"
"""Why a message is refused."""
