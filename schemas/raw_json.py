"""JSON kept as the bytes that came: checked, and cut into members, but never parsed into values and written again."""

import re
from typing import Final

import msgspec

# Receivers' parsers stop at depths from 64 upwards. Ours recurse: without a bound of our own, what is readable would
# depend on how deep the caller's stack happens to be.
MAX_DEPTH: Final = 128

_value = msgspec.json.Decoder(msgspec.Raw)
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_array = msgspec.json.Decoder(list[msgspec.Raw])

_STRING: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_SQUARED: Final = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS: Final = bytes(byte for byte in range(256) if byte not in b"[]{}")


def json_fault(text: bytes, *, max_depth: int = MAX_DEPTH) -> str | None:
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
        return _too_deep(max_depth)
    return _too_deep(max_depth) if _deeper_than(max_depth, text) else None


def members(text: bytes) -> dict[str, bytes] | None:
    """The members of a JSON object, each value as the bytes that it is; None for any other JSON value.

    Only for what `json_fault` has passed. Of a name that is there twice, the last counts, as with most parsers.
    """
    try:
        return {name: bytes(raw) for name, raw in _object.decode(text).items()}
    except msgspec.ValidationError:
        return None


def elements(text: bytes) -> list[bytes] | None:
    """The elements of a JSON array, each as the bytes that it is; None for any other JSON value.

    Only for what `json_fault` has passed.
    """
    try:
        return [bytes(raw) for raw in _array.decode(text)]
    except msgspec.ValidationError:
        return None


def _too_deep(max_depth: int) -> str:
    return f"must be JSON that is nested at most {max_depth} deep"


def _deeper_than(max_depth: int, text: bytes) -> bool:
    """Whether well-formed JSON is nested deeper than `max_depth`; at the speed of C, since most events pass here."""
    if text.count(b"[") + text.count(b"{") <= max_depth:
        return False
    brackets = _STRING.sub(b"", text).translate(_SQUARED, _NO_BRACKETS)
    for _ in range(max_depth):
        brackets = brackets.replace(b"[]", b"")  # takes off the innermost level everywhere, and so at least one
    return bool(brackets)
