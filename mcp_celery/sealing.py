"""How a task's snapshot is written down: as it is, or sealed.

Sealed, nothing of it can be read or changed in the store, and it opens only where it was put: the name of its place is
sealed with it, so that a snapshot copied to another task is refused. As it is, it holds no access token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from mcp_celery.context import TaskContextSnapshot
from mcp_celery.errors import SnapshotUnreadableError
from mcp_celery.formats import NewerFormatError

_FORM: Final = "mcp-celery/snapshot/1"
"""Opens every sealed text, so that nothing else that was sealed with the same keys passes for a snapshot."""


class Cipher(Protocol):
    """Authenticated encryption with a ring of keys; the SDK's ``RequestStateCodec`` is one."""

    def seal(self, payload: bytes) -> str:
        """Encrypt with the newest key."""
        ...

    def unseal(self, token: str) -> bytes:
        """Decrypt with whichever key it was sealed with. Raises an error that quotes nothing of the token."""
        ...


@dataclass(frozen=True, slots=True)
class SnapshotCodec:
    """Writes snapshots, and reads what it wrote.

    Args:
        cipher: Seals them, and the access token with them. None: they are kept as they are, without the token.
    """

    cipher: Cipher | None = None

    def write(self, snapshot: TaskContextSnapshot, place: str) -> str:
        """The text to store.

        Args:
            snapshot: The creating request and its context.
            place: The only name under which it may be read.
        """
        if self.cipher is None:
            return snapshot.to_json()
        return self.cipher.seal("\n".join((_FORM, place, snapshot.to_json(with_token=True))).encode())

    def read(self, stored: bytes, place: str) -> TaskContextSnapshot:
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
        sealed = not stored.startswith(b"{")
        if self.cipher is None:
            if sealed:
                raise SnapshotUnreadableError("it is sealed, and this process has no MCP_CELERY_ENCRYPTION_KEYS")
            return _parsed(stored)
        if not sealed:
            raise SnapshotUnreadableError("it is not sealed: it was written without MCP_CELERY_ENCRYPTION_KEYS")
        try:
            opened = self.cipher.unseal(stored.decode())
        except Exception as error:  # noqa: BLE001 - whatever it is: what cannot be opened is not used
            reason = f"MCP_CELERY_ENCRYPTION_KEYS do not open it ({type(error).__name__}: {error})"
            raise SnapshotUnreadableError(reason) from None
        form, _, rest = opened.partition(b"\n")
        found_place, _, text = rest.partition(b"\n")
        if form != _FORM.encode() or found_place != place.encode():
            raise SnapshotUnreadableError("it was sealed for another task")
        return _parsed(text)


def _parsed(text: bytes) -> TaskContextSnapshot:
    try:
        return TaskContextSnapshot.from_json(text)
    except NewerFormatError as error:
        raise SnapshotUnreadableError(str(error)) from None
    except ValueError:
        raise SnapshotUnreadableError("it is not a task context snapshot") from None
