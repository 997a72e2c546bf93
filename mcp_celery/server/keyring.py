"""Keys derived from ``MCP_CELERY_ENCRYPTION_KEYS`` with HKDF-SHA256: each purpose has keys of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, get_args

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from mcp.server.request_state import AESGCMRequestStateCodec

from mcp_celery.sealing import UNSEALED, Cipher, MessageSigner, Purpose, Sealing, SnapshotCodec

_KEY_BYTES: Final = 32
_PURPOSES: Final[tuple[Purpose, ...]] = get_args(Purpose)


def _derived(key: str, purpose: str) -> bytes:
    info = f"mcp-celery/{purpose}".encode()
    return HKDF(algorithm=SHA256(), length=_KEY_BYTES, salt=None, info=info).derive(key.encode())


def snapshots_with(keys: Sequence[str], *, accept_unsealed: bool = False) -> SnapshotCodec:
    """Seal with the newest key, and open with each; snapshots of 0.1.0, too, which used the keys as they are.

    Args:
        keys: The newest first. Empty: nothing is sealed.
        accept_unsealed: As in :class:`Sealing`.
    """
    if not keys:
        return UNSEALED
    ciphers: dict[Purpose, Cipher] = {}
    for purpose in _PURPOSES:
        ciphers[purpose] = AESGCMRequestStateCodec([_derived(key, purpose) for key in keys])
    sealing = Sealing(ciphers, accept_unsealed, tuple(_derived(key, "record") for key in keys))
    return SnapshotCodec(sealing, AESGCMRequestStateCodec(keys))


def signer_with(keys: Sequence[str], *, accept_unsealed: bool = False) -> MessageSigner:
    """Sign the messages of jobs with the newest key, and accept the signature of each.

    Args:
        keys: The newest first. Empty: nothing is signed.
        accept_unsealed: Whether a message without a signature is accepted.
    """
    return MessageSigner(tuple(_derived(key, "message") for key in keys), accept_unsealed)
