"""Reading AMQP frames that pamqp cannot decode.

AMQP carries what no Python value holds: a timestamp in the year 55,840 (microseconds taken for seconds), text that is
not UTF-8. pamqp refuses the frame, aiormq drops the connection, and the broker sends the same message again on the next
one: a single message of a foreign producer would keep all consumers of its queue from consuming, and then the keeper.

So once a connection was lost to such a frame, the next ones are read through `MendingReader`. It decodes the frames
that bring messages once more, and of one that fails it keeps what can be read. Bodies are never touched. Decoding
everything twice costs about a tenth of what consuming costs, which is why it is not done before it is needed.
"""

import asyncio
import struct
from contextlib import suppress
from typing import Any, Final

from pamqp import decode, encode, header
from pamqp.commands import Basic

from infra.broker.amqp_message import readable

UNREADABLE_HEADER: Final = "hookhare-unreadable"  # names the properties that were lost or changed

_METHOD: Final = 1
_HEADER: Final = 2
_DELIVER: Final = struct.pack(">HH", 60, 60)
_FIXED_BYTES: Final = {"octet": 1, "timestamp": 8}
_FAULTS: Final = (ValueError, ArithmeticError, TypeError, LookupError, RecursionError, struct.error)


class MendingReader(asyncio.StreamReader):
    """Hands aiormq frames that it can decode.

    aiormq reads a frame in three steps: its type (1 byte); channel and size (6); payload and end marker. The second
    step already reads the payload here, because mending may change its size.
    """

    _step = 0
    _kind = 0
    _payload = b""

    async def readexactly(self, n: int) -> bytes:
        step, self._step = self._step, (self._step + 1) % 3
        if step == 2:
            return self._payload
        data = await super().readexactly(n)
        if step == 0:
            self._kind = data[0]
            return data
        channel, size = struct.unpack(">HI", data)
        payload = await super().readexactly(size + 1)
        mended = mend(self._kind, payload[:-1])
        self._payload = mended + payload[-1:]
        return struct.pack(">HI", channel, len(mended))


def mend(kind: int, payload: bytes) -> bytes:
    """The payload of a frame, or one that can be decoded in its place."""
    if kind == _HEADER:
        try:
            header.ContentHeader().unmarshal(payload)
        except _FAULTS:
            with suppress(*_FAULTS):  # what cannot be taken apart at all is no AMQP: let aiormq refuse it
                return _mended_header(payload)
    elif kind == _METHOD and payload.startswith(_DELIVER):
        try:
            payload.decode("ascii")  # text of ours and numbers; only a foreign routing key can fail
        except UnicodeDecodeError:
            return _mended_deliver(payload)
    return payload


def _mended_deliver(payload: bytes) -> bytes:
    """The exchange and the routing key in ASCII if they are not UTF-8; the tag and the flags as they are."""
    start = 4 + 1 + payload[4] + 8 + 1
    exchange, rest = _short(payload[start:])
    key, _ = _short(rest)
    return payload[:start] + _text(exchange) + _text(key)


def _mended_header(payload: bytes) -> bytes:
    class_id, _, body_size = struct.unpack(">HHQ", payload[:12])
    flags = int.from_bytes(payload[12:14], "big")
    rest = payload[14:]
    kept: dict[str, Any] = {}
    lost = []
    for name, flag in Basic.Properties.flags.items():
        if not flags & flag:
            continue
        raw, rest = _split(name, rest)
        try:
            kept[name] = decode.by_type(raw, _type(name))[1]
        except _FAULTS:
            lost.append(name)
            if name == "headers":
                kept[name] = _readable_entries(raw)
            elif _type(name) == "shortstr":
                kept[name] = _ascii(raw[1:]).decode()
    headers = {name: _encodable(value) for name, value in (kept.pop("headers", None) or {}).items()}
    kept.pop("cluster_id", None)  # must be empty
    if kept.get("delivery_mode") not in (1, 2):
        kept.pop("delivery_mode", None)
    properties = Basic.Properties(headers=headers | {UNREADABLE_HEADER: ", ".join(lost)}, **kept)
    whole = header.ContentHeader(body_size=body_size, properties=properties)
    whole.class_id = class_id
    return whole.marshal()


def _readable_entries(table: bytes) -> dict[str, Any]:
    """The entries of a header table up to the first that cannot be read; what the broker adds itself comes first."""
    entries: dict[str, Any] = {}
    rest = table[4:]
    with suppress(*_FAULTS):
        while rest:
            name, rest = _short(rest)
            if rest[:1] == b"T":  # the one kind of value that can fail and has a known size
                value, consumed = _moment(rest), 9
            else:
                consumed, value = decode.embedded_value(rest)
            entries[_ascii(name).decode()] = value
            rest = rest[consumed:]
    return entries


def _moment(value: bytes) -> Any:
    try:
        return decode.embedded_value(value)[1]
    except _FAULTS:
        return str(int.from_bytes(value[1:9], "big"))


def _encodable(value: Any) -> Any:
    """As it came, if pamqp can write what it has read; or else as text."""
    if isinstance(value, bytes):
        return bytearray(value)
    try:
        encode.encode_table_value(value)
    except _FAULTS:
        return str(readable(value))
    return value


def _split(name: str, rest: bytes) -> tuple[bytes, bytes]:
    """The bytes of a property, and what follows."""
    kind = _type(name)
    if kind == "shortstr":
        size = 1 + rest[0]
    elif kind == "table":
        size = 4 + int.from_bytes(rest[:4], "big")
    else:
        size = _FIXED_BYTES[kind]
    return rest[:size], rest[size:]


def _type(name: str) -> str:
    kind: str = getattr(Basic.Properties, "_" + name)
    return kind


def _short(data: bytes) -> tuple[bytes, bytes]:
    end = 1 + data[0]
    return data[1:end], data[end:]


def _text(text: bytes) -> bytes:
    try:
        text.decode()
    except UnicodeDecodeError:
        text = _ascii(text)
    return bytes([len(text)]) + text


def _ascii(text: bytes) -> bytes:
    return bytes(byte if byte < 0x80 else 0x3F for byte in text)
