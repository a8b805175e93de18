"""Secrets at rest: encrypted with Fernet (AES-128-CBC and HMAC-SHA256), the first key encrypts, every key decrypts.

So a key is changed without downtime: put the new one in front, encrypt anew what is stored (infra/store/encryption.py),
then drop the old one. Nothing here, neither an error nor a repr, ever shows a key or a plaintext.
"""

import base64
import binascii
from collections.abc import Sequence
from typing import Final, Self

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from infra.settings import Settings
from schemas.errors import ConfigurationError, SecretUnreadable

_VARIABLE: Final = "HOOKHARE_ENCRYPTION_KEYS"
_HOW: Final = "`hookhare keys new-encryption-key` makes one"
_KEY_BYTES: Final = 32


def new_key() -> str:
    """A fresh Fernet key: 32 random bytes as URL-safe base64."""
    return Fernet.generate_key().decode("ascii")


class Vault:
    """Encrypts and decrypts what must not be readable in the database.

    Raises ConfigurationError, which names the setting and never a key, when there is no key or one is not a Fernet key.
    """

    __slots__ = ("_count", "_fernet", "_first")

    def __init__(self, keys: Sequence[str]) -> None:
        if not keys:
            raise ConfigurationError(f"{_VARIABLE}: no key is set, and secrets are stored only encrypted; {_HOW}")
        for position, key in enumerate(keys, start=1):
            if not _is_key(key):
                raise ConfigurationError(
                    f"{_VARIABLE}: key {position} of {len(keys)} is not a Fernet key "
                    f"(32 bytes as URL-safe base64, 44 characters with its padding); {_HOW}"
                )
        self._count = len(keys)
        fernets = [Fernet(key) for key in keys]
        self._first = fernets[0]
        self._fernet = MultiFernet(fernets)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The vault of the configured keys."""
        text = settings.encryption_keys.get_secret_value() if settings.encryption_keys is not None else ""
        return cls([part for part in (piece.strip() for piece in text.split(",")) if part])

    def encrypt(self, plain: bytes) -> bytes:
        """Encrypt with the first key."""
        return self._fernet.encrypt(plain)

    def decrypt(self, stored: bytes) -> bytes:
        """What was encrypted with any of the keys. Raises SecretUnreadable, also for what is damaged or no token."""
        try:
            return self._fernet.decrypt(stored)
        except InvalidToken:
            # No cause is chained: the library's own has nothing to add, and a traceback would show its locals.
            raise self._unreadable() from None

    def is_under_first_key(self, stored: bytes) -> bool:
        """Whether the first key decrypts it. A token does not say which key it is under: this tries."""
        try:
            self._first.decrypt(stored)
        except InvalidToken:
            return False
        return True

    def encrypt_anew(self, stored: bytes) -> bytes:
        """The same, encrypted with the first key. Raises SecretUnreadable as `decrypt` does."""
        try:
            return self._fernet.rotate(stored)
        except InvalidToken:
            raise self._unreadable() from None

    def _unreadable(self) -> SecretUnreadable:
        return SecretUnreadable(
            f"a stored secret is decrypted by none of the {self._count} keys of {_VARIABLE}; "
            "it is damaged, or the key that encrypted it was removed"
        )

    def __repr__(self) -> str:
        return f"Vault({self._count} keys)"


def _is_key(text: str) -> bool:
    # Strict, because base64.urlsafe_b64decode, which Fernet uses, drops characters outside its alphabet: a key with a
    # typing error could become another valid key.
    try:
        raw = base64.b64decode(text.encode("ascii"), altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error):
        return False
    return len(raw) == _KEY_BYTES and base64.urlsafe_b64encode(raw).decode("ascii") == text
