"""Reading the properties of AMQP messages, also of those that no Python client would have written.

AMQP carries what no Python value holds: a timestamp in the year 55,840 (microseconds taken for seconds), text that is
not UTF-8. pamqp refuses the frame for it, and aiormq drops the connection; the broker would send the same message again
on the next one, and a single message of a foreign producer would keep all consumers of its queue from consuming, and
then the keeper. So what cannot be read is left out or made readable, and named in a header. Bodies are never touched.

Properties: AMQP 0-9-1, section 4.2.6; their values, as RabbitMQ writes them: its errata to that specification.
"""

import struct
from datetime import datetime
from typing import Any, Final

import msgspec
from pamqp import decode

UNREADABLE_HEADER: Final = "hookhare-unreadable"  # names the properties that were lost or changed

_FAULTS: Final = (ValueError, ArithmeticError, TypeError, LookupError, RecursionError, OSError, struct.error)
_FLAGS: Final = struct.Struct(">H")
_LONG: Final = struct.Struct(">I")
_MORE_FLAGS: Final = 1
_SHORT_TEXT, _TABLE, _OCTET, _MOMENT = range(4)
_SIZE_OF_MOMENT: Final = 8
_TEXT_VALUE: Final = ord("S")
_MOMENT_VALUE: Final = ord("T")
_NESTED: Final = b"FA"  # tables and arrays: a size, and values in them
# In the order in which they stand; those without a name are of no use to us.
_PROPERTIES: Final = (
    (1 << 15, _SHORT_TEXT, "content_type"),
    (1 << 14, _SHORT_TEXT, None),
    (1 << 13, _TABLE, "headers"),
    (1 << 12, _OCTET, None),
    (1 << 11, _OCTET, None),
    (1 << 10, _SHORT_TEXT, None),
    (1 << 9, _SHORT_TEXT, None),
    (1 << 8, _SHORT_TEXT, None),
    (1 << 7, _SHORT_TEXT, "message_id"),
    (1 << 6, _MOMENT, "timestamp"),
    (1 << 5, _SHORT_TEXT, "message_type"),
    (1 << 4, _SHORT_TEXT, None),
    (1 << 3, _SHORT_TEXT, "app_id"),
    (1 << 2, _SHORT_TEXT, None),
)


class Properties(msgspec.Struct, eq=False):
    """Those that we read; `headers` as pamqp decodes their values."""

    headers: dict[str, Any]
    content_type: str | None = None
    message_id: str | None = None
    timestamp: datetime | None = None
    message_type: str | None = None
    app_id: str | None = None


def read_properties(raw: bytes) -> Properties:
    """The properties whose flags and values these are. Never raises: what cannot be read is named in a header."""
    found = Properties({})
    lost: list[str] = []
    try:
        _read(raw, found, lost)
    except _FAULTS:
        lost.append("all that follows")
    if lost:
        found.headers[UNREADABLE_HEADER] = ", ".join(dict.fromkeys(lost))
    return found


def _read(raw: bytes, found: Properties, lost: list[str]) -> None:
    (flags,) = _FLAGS.unpack_from(raw)
    if flags & _MORE_FLAGS:
        raise ValueError("there are no more properties than these")
    at = _FLAGS.size
    for flag, kind, name in _PROPERTIES:
        if not flags & flag:
            continue
        if kind == _SHORT_TEXT:
            start, at = at + 1, at + 1 + raw[at]
            if name is not None:
                setattr(found, name, _text(raw[start:at], name, lost))
        elif kind == _TABLE:
            start, at = at + _LONG.size, at + _LONG.size + _LONG.unpack_from(raw, at)[0]
            _read_headers(raw[start:at], found.headers, lost)
        elif kind == _MOMENT:
            start, at = at, at + _SIZE_OF_MOMENT
            found.timestamp = _moment(raw[start:at], lost)
        else:
            at += 1
        if at > len(raw):
            raise ValueError("it ends before its last property")


def _text(raw: bytes, name: str, lost: list[str]) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        lost.append(name)
        return as_ascii(raw)


def _moment(raw: bytes, lost: list[str]) -> datetime | None:
    try:
        return decode.timestamp(raw)[1]
    except _FAULTS:
        lost.append("timestamp")
        return None


def _read_headers(table: bytes, headers: dict[str, Any], lost: list[str]) -> None:
    """The entries of a table up to the first of which nothing can be read, not even where it ends.

    Text is decoded here, everything else by pamqp, which takes twice as long.
    """
    at = 0
    try:
        while at < len(table):
            start, at = at + 1, at + 1 + table[at]
            name = _text(table[start:at], "headers", lost)
            if table[at] == _TEXT_VALUE:
                start, at = at + 5, at + 5 + _LONG.unpack_from(table, at + 1)[0]
                headers[name] = _long_text(table[start:at])
            else:
                headers[name], used = _value(table[at:], lost)
                at += used
            if at > len(table):
                raise ValueError("it ends within a value")
    except _FAULTS:
        lost.append("headers")


def _long_text(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _value(raw: bytes, lost: list[str]) -> tuple[Any, int]:
    try:
        used, value = decode.embedded_value(raw)
    except _FAULTS:
        lost.append("headers")
        if raw[0] == _MOMENT_VALUE:
            return str(int.from_bytes(raw[1 : 1 + _SIZE_OF_MOMENT], "big")), 1 + _SIZE_OF_MOMENT
        if raw[0] in _NESTED:  # what comes behind it counts: the broker writes how often it was delivered
            return None, 5 + _LONG.unpack_from(raw, 1)[0]
        raise
    return value, used


def as_ascii(text: bytes) -> str:
    """With a question mark for each byte that is no ASCII."""
    return bytes(byte if byte < 0x80 else 0x3F for byte in text).decode()
