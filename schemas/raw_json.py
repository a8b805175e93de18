"""JSON kept as the bytes that came: checked, and cut into members, but never parsed into values and written again."""

import re
from typing import Final

import msgspec

# Receivers' parsers stop at depths from 64 upwards. Ours recurse: without a bound of our own, what is readable would
# depend on how deep the caller's stack happens to be.
MAX_DEPTH: Final = 128

_value = msgspec.json.Decoder(msgspec.Raw)
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])

_STRING: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_SQUARED: Final = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS: Final = bytes(byte for byte in range(256) if byte not in b"[]{}")


def json_fault(text: bytes) -> str | None:
    """None if `text` is one JSON value (RFC 8259) in UTF-8, without lone surrogates and not nested too deep.

    Otherwise what would be right. A byte order mark, NaN and Infinity are no JSON; numbers may be of any size.
    """
    try:
        text.decode()  # msgspec steps over the bytes inside of strings unseen
        _value.decode(text)
    except UnicodeDecodeError:
        return "must be JSON in UTF-8"
    except msgspec.DecodeError as error:
        return f"must be JSON: {error}"[:200]
    except RecursionError:
        return _TOO_DEEP
    return _TOO_DEEP if _deeper_than_allowed(text) else None


def members(text: bytes) -> dict[str, bytes] | None:
    """The members of a JSON object, each value as the bytes that it is; None for any other JSON value.

    Only for what `json_fault` has passed. Of a name that is there twice, the last counts, as with most parsers.
    """
    try:
        return {name: bytes(raw) for name, raw in _object.decode(text).items()}
    except msgspec.ValidationError:
        return None


_TOO_DEEP: Final = f"must be JSON that is nested at most {MAX_DEPTH} deep"


def _deeper_than_allowed(text: bytes) -> bool:
    """Whether well-formed JSON is nested deeper than the bound; at the speed of C, since most events pass here."""
    if text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return False
    brackets = _STRING.sub(b"", text).translate(_SQUARED, _NO_BRACKETS)
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"")  # takes off the innermost level everywhere, and so at least one
    return bool(brackets)
