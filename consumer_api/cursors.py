"""Cursors: where a list goes on. Opaque to the caller; inside, the key of the last row that was shown."""

import base64
import binascii
from uuid import UUID

from schemas.errors import InvalidInput


def encode_cursor(key: UUID) -> str:
    return base64.urlsafe_b64encode(key.bytes).rstrip(b"=").decode()


def decode_cursor(text: str) -> UUID:
    """The key in a cursor. Raises InvalidInput that names `cursor`."""
    try:
        raw = base64.b64decode(f"{text}==".encode("ascii"), altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error):
        raw = b""
    if len(raw) != 16 or encode_cursor(UUID(bytes=raw)) != text:
        raise InvalidInput.of("cursor", "must be the next_cursor of an earlier answer")
    return UUID(bytes=raw)
