"""Standard Webhooks 1.0.0: signing what goes out, and verifying it as a receiver does.

What is signed is `{id}.{timestamp}.{body}`. A `whsec_` secret signs `v1` (HMAC-SHA256), a `whsk_` secret `v1a`
(Ed25519), which its `whpk_` verifies. Older forms sign the body alone, with the bytes of a text (`text_key`,
`hex_signature`). All is bytes, and comparison takes constant time. No secret is ever part of an
error or a repr. `cryptography` is imported only where Ed25519 is used, since the base install does not have it.
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Final, assert_never

from schemas.errors import InvalidInput, InvalidSignature

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = [
    "Algorithm",
    "Ed25519Key",
    "HmacKey",
    "InvalidSignature",
    "SigningKey",
    "VerifyingKey",
    "format_keypair",
    "format_secret",
    "hex_signature",
    "parse_public_key",
    "parse_secret",
    "public_key",
    "sign",
    "text_key",
    "verify",
]

ID_HEADER: Final = "webhook-id"
TIMESTAMP_HEADER: Final = "webhook-timestamp"
SIGNATURE_HEADER: Final = "webhook-signature"

MIN_SECRET_BYTES: Final = 24  # both from Standard Webhooks 1.0.0, "Signature scheme"
MAX_SECRET_BYTES: Final = 64
TOLERANCE_S: Final = 300

_SYMMETRIC, _PRIVATE, _PUBLIC = "whsec_", "whsk_", "whpk_"
_ED25519_BYTES: Final = 32
_MAX_SIGNATURES_CHARS: Final = 8192
_TIMESTAMP: Final = re.compile(r"[0-9]{1,12}")

_SECRET_FORM: Final = (
    f"must be {_SYMMETRIC} followed by the base64 of {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes, "
    f"or {_PRIVATE} followed by the base64 of an Ed25519 seed and its public key"
)


class Algorithm(StrEnum):
    """The hash of an HMAC over a body. SHA1 only for receivers that know nothing else."""

    SHA256 = "sha256"
    SHA1 = "sha1"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class HmacKey:
    """A `whsec_` secret, ready to sign `v1`, or a text, ready to sign a body. The keyed hash is kept and copied, so the
    key is hashed only once."""

    _keyed: hmac.HMAC

    def __repr__(self) -> str:
        return "HmacKey(…)"

    def signature(self, content: bytes) -> bytes:
        """The bytes of the HMAC: 32 of SHA256, 20 of SHA1."""
        keyed = self._keyed.copy()
        keyed.update(content)
        return keyed.digest()


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Ed25519Key:
    """A `whsk_` secret, ready to sign `v1a`."""

    _private: "Ed25519PrivateKey"

    def __repr__(self) -> str:
        return "Ed25519Key(…)"

    def signature(self, content: bytes) -> bytes:
        """The 64 bytes of Ed25519."""
        return self._private.sign(content)

    def public(self) -> "Ed25519PublicKey":
        return self._private.public_key()


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class PublicKey:
    """A `whpk_` key, which verifies `v1a`."""

    _public: "Ed25519PublicKey"

    def __repr__(self) -> str:
        return "PublicKey(…)"

    def public(self) -> "Ed25519PublicKey":
        return self._public


SigningKey = HmacKey | Ed25519Key
VerifyingKey = HmacKey | Ed25519Key | PublicKey


def parse_secret(text: str, *, field: str = "secret") -> SigningKey:
    """The key in a `whsec_` or `whsk_` secret. Raises InvalidInput that names `field` and never shows the secret."""
    if text.startswith(_SYMMETRIC):
        raw = _decoded(text.removeprefix(_SYMMETRIC))
        if raw is not None and MIN_SECRET_BYTES <= len(raw) <= MAX_SECRET_BYTES:
            return HmacKey(hmac.new(raw, digestmod=hashlib.sha256))
    elif text.startswith(_PRIVATE):
        raw = _decoded(text.removeprefix(_PRIVATE))
        if raw is not None and len(raw) == 2 * _ED25519_BYTES:
            return _ed25519_key(raw, field)
    raise InvalidInput.of(field, _SECRET_FORM)


def text_key(text: str, algorithm: Algorithm) -> HmacKey:
    """The key that is a text, as the receiver has it in its configuration: its bytes in UTF-8, not decoded (GitHub,
    "Validating webhook deliveries")."""
    return HmacKey(hmac.new(text.encode(), digestmod=algorithm.value))


def parse_public_key(text: str, *, field: str = "public_key") -> PublicKey:
    """The key in a `whpk_` text. Raises InvalidInput that names `field`."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415 - see the module

    raw = _decoded(text.removeprefix(_PUBLIC)) if text.startswith(_PUBLIC) else None
    if raw is None or len(raw) != _ED25519_BYTES:
        raise InvalidInput.of(field, f"must be {_PUBLIC} followed by the base64 of {_ED25519_BYTES} bytes")
    return PublicKey(Ed25519PublicKey.from_public_bytes(raw))


def format_secret(raw: bytes) -> str:
    """The `whsec_` text of `raw`, which are 24 to 64 random bytes that the caller drew."""
    if not MIN_SECRET_BYTES <= len(raw) <= MAX_SECRET_BYTES:
        raise InvalidInput.of("secret", f"must be {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} random bytes")
    return _SYMMETRIC + base64.b64encode(raw).decode("ascii")


def format_keypair(seed: bytes) -> str:
    """The `whsk_` text of an Ed25519 seed, which are 32 random bytes that the caller drew."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415 - see the module

    if len(seed) != _ED25519_BYTES:
        raise InvalidInput.of("secret", f"must be {_ED25519_BYTES} random bytes")
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    return _PRIVATE + base64.b64encode(seed + public).decode("ascii")


def public_key(key: Ed25519Key) -> str:
    """The `whpk_` text that a receiver verifies this key's signatures with."""
    return _PUBLIC + base64.b64encode(key.public().public_bytes_raw()).decode("ascii")


def sign(keys: Sequence[SigningKey], *, webhook_id: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`: one signature for each key, in order, separated by spaces.

    `timestamp` is in Unix seconds. The id must be of visible ASCII without a dot: with one, the same signed
    bytes could be read as another id at another time. Raises ValueError, since the id is ours.
    """
    if "." in webhook_id or not _visible(webhook_id):
        raise ValueError("a webhook id is of visible ASCII characters, without a dot")
    content = _signed_content(webhook_id, str(timestamp), body)
    return " ".join([_versioned(key, content) for key in keys])


def hex_signature(key: SigningKey, body: bytes) -> str:
    """The HMAC over the body alone, in lower-case hex. It says nothing of when: no receiver can tell a replay by it."""
    return key.signature(body).hex()


def verify(
    key: VerifyingKey, *, headers: Mapping[str, str], body: bytes, now: datetime, tolerance_s: float = TOLERANCE_S
) -> None:
    """Return if one of the signatures is by `key` over these very bytes, at most `tolerance_s` from `now`.

    Raises InvalidSignature for anything else, malformed or missing headers included. Names of headers are taken in any
    case.
    """
    webhook_id = _header(headers, ID_HEADER)
    timestamp = _header(headers, TIMESTAMP_HEADER)
    signatures = _header(headers, SIGNATURE_HEADER)
    if not _TIMESTAMP.fullmatch(timestamp):
        raise InvalidSignature(f"{TIMESTAMP_HEADER} is not a Unix time in whole seconds")
    age_s = now.timestamp() - int(timestamp)
    if abs(age_s) > tolerance_s:
        raise InvalidSignature(f"{TIMESTAMP_HEADER} is too {'old' if age_s > 0 else 'new'}")
    if len(signatures) > _MAX_SIGNATURES_CHARS:
        raise InvalidSignature(f"{SIGNATURE_HEADER} is longer than {_MAX_SIGNATURES_CHARS} characters")
    content = _signed_content(webhook_id, timestamp, body)
    match key:
        case HmacKey():
            good = _any_hmac(key, content, _of_version("v1", signatures))
        case Ed25519Key() | PublicKey():
            good = _any_ed25519(key.public(), content, _of_version("v1a", signatures))
        case _:
            assert_never(key)
    if not good:
        raise InvalidSignature(f"no signature in {SIGNATURE_HEADER} matches")


def _ed25519_key(raw: bytes, field: str) -> Ed25519Key:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415 - see the module

    private = Ed25519PrivateKey.from_private_bytes(raw[:_ED25519_BYTES])
    if private.public_key().public_bytes_raw() != raw[_ED25519_BYTES:]:
        # The receiver holds the public half as given: every signature would be refused there.
        raise InvalidInput.of(field, "the public key in it does not belong to its seed")
    return Ed25519Key(private)


def _any_hmac(key: HmacKey, content: bytes, signatures: Sequence[str]) -> bool:
    expected = base64.b64encode(key.signature(content))
    return any(hmac.compare_digest(expected, given.encode()) for given in signatures)


def _any_ed25519(key: "Ed25519PublicKey", content: bytes, signatures: Sequence[str]) -> bool:
    from cryptography.exceptions import InvalidSignature as Mismatch  # noqa: PLC0415 - see the module

    for given in signatures:
        raw = _decoded(given)
        if raw is None:
            continue
        try:
            key.verify(raw, content)
        except Mismatch:
            continue
        return True
    return False


def _versioned(key: SigningKey, content: bytes) -> str:
    version = "v1" if isinstance(key, HmacKey) else "v1a"
    return f"{version},{base64.b64encode(key.signature(content)).decode('ascii')}"


def _of_version(version: str, signatures: str) -> list[str]:
    """The signatures of that version; what has no version, or another, is for somebody else."""
    pairs = (part.partition(",") for part in signatures.split(" "))
    return [signature for name, _, signature in pairs if name == version]


def _signed_content(webhook_id: str, timestamp: str, body: bytes) -> bytes:
    return b"%b.%b.%b" % (webhook_id.encode("ascii"), timestamp.encode("ascii"), body)


def _header(headers: Mapping[str, str], name: str) -> str:
    # All of them, since a multi-dict may hold two: which one the rest of a receiver believes would be anybody's guess.
    values = [value for given, value in headers.items() if given.lower() == name]
    if len(values) != 1:
        raise InvalidSignature(f"{name} is missing" if not values else f"{name} is there more than once")
    if not values[0].isascii() or not values[0]:
        raise InvalidSignature(f"{name} is empty or not ASCII")
    return values[0]


def _visible(text: str) -> bool:
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


def _decoded(text: str) -> bytes | None:
    """The bytes of canonical base64, padding included; None for anything else.

    Not more tolerant: decoders differ in what they make of the rest, and a secret must be the same on both sides.
    """
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):  # ValueError: text that is not ASCII
        return None
    return raw if base64.b64encode(raw).decode("ascii") == text else None
