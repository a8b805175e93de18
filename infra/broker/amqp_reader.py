"""Reads messages off a connection in front of aiormq, which reads all other frames of it.

aiormq takes a frame out of the stream in three awaits, decodes it into objects field by field, and queues it for a task
of its channel: a message is three frames, and took 56 of the 256 microseconds that a delivery took. Cut out of the
bytes as they come it takes three and a half, and the deliveries of a CPU-second are a fifth more (`make bench`). All
else stays aiormq's: the handshake, channels, what is asked and answered, confirms, heartbeats, and closing.

Frames: AMQP 0-9-1, section 4.2.
"""

import asyncio
import struct
from collections.abc import Callable
from typing import Final

import msgspec
from aiormq.exceptions import InvalidFrameError

_METHOD: Final = 1
_HEADER: Final = 2
_BODY: Final = 3
_HEARTBEAT: Final = 8
_KINDS: Final = (_METHOD, _HEADER, _BODY, _HEARTBEAT)
_FRAME: Final = struct.Struct(">BHI")  # its kind, its channel, the size of its payload; an end mark follows that
_FRAME_END: Final = 0xCE
_ANY_HEARTBEAT: Final = _FRAME.pack(_HEARTBEAT, 0, 0) + bytes([_FRAME_END])
_SIGN_OF_LIFE_S: Final = 1.0

_DELIVER: Final = struct.pack(">HH", 60, 60)
_TAG: Final = struct.Struct(">QB")  # the delivery tag and, its only bit, whether it is a redelivery
_BODY_SIZE: Final = struct.Struct(">Q")
_BODY_SIZE_AT: Final = 4  # after the class and the weight


class Delivered(msgspec.Struct, frozen=True, eq=False):
    """A basic.deliver with its content. `properties` are their flags and values, undecoded."""

    tag: int
    redelivered: bool
    routing_key: bytes
    properties: bytes
    body: bytes


Take = Callable[[Delivered], None]


class MessageReader(asyncio.StreamReader):
    """Hands the messages of some channels to whoever takes them, and all other frames, whole, to its reader."""

    def __init__(self, *, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._clock = loop.time
        self._channels: dict[int, _Channel] = {}
        self._begun: list[bytes] = []  # of a frame whose end has not come
        self._awaited_bytes = 0  # until there is more of it to look at
        self._gave_life_s = 0.0
        self._astray = False  # what comes is no AMQP, or not in its order: aiormq's to refuse

    def hand_over(self, channel: int, take: Take) -> None:
        """From now on give the messages of `channel` to `take`, which is quick and raises nothing."""
        self._channels[channel] = _Channel(take)

    def feed_data(self, data: bytes) -> None:  # type: ignore[override]  # asyncio gives it no other iterable
        if self._astray:
            super().feed_data(data)
            return
        self._begun.append(data)
        self._awaited_bytes -= len(data)
        if self._awaited_bytes > 0:
            return
        stream = b"".join(self._begun)
        self._awaited_bytes = 0
        at, passed_at, took = 0, 0, False
        try:
            while len(stream) - at >= _FRAME.size:
                kind, number, size = _FRAME.unpack_from(stream, at)
                after = at + _FRAME.size + size + 1
                if kind not in _KINDS or (after <= len(stream) and stream[after - 1] != _FRAME_END):
                    self._astray = True
                    break
                if after > len(stream):
                    self._awaited_bytes = after - len(stream)
                    break
                channel = self._channels.get(number)
                if channel is not None and channel.take(kind, stream[at + _FRAME.size : after - 1]):
                    self._pass_on(stream[passed_at:at])
                    passed_at, took = after, True
                at = after
        except (InvalidFrameError, LookupError, struct.error) as error:
            self._astray = True
            self.set_exception(InvalidFrameError(f"a message that breaks AMQP's rules: {error}"))
        self._pass_on(stream[passed_at:at])
        self._begun = [stream[at:]]
        if self._astray:
            self._give_up()
        elif took and self._clock() - self._gave_life_s > _SIGN_OF_LIFE_S:
            # A connection without frames is dead to aiormq, and a broker that has messages to send sends no heartbeats.
            self._gave_life_s = self._clock()
            self._pass_on(_ANY_HEARTBEAT)

    def feed_eof(self) -> None:
        self._give_up()
        super().feed_eof()

    def _give_up(self) -> None:
        self._astray, begun, self._begun = True, self._begun, []
        self._pass_on(b"".join(begun))

    def _pass_on(self, data: bytes) -> None:
        if data:  # the end is told twice, and not even nothing may be fed after it
            super().feed_data(data)


class _Channel:
    """Puts a message together: a method, a header, and frames of the body until it has its size."""

    __slots__ = ("_body", "_deliver", "_header", "_missing_bytes", "_take")

    def __init__(self, take: Take) -> None:
        self._take = take
        self._deliver = b""  # the payload of the method, while its content is awaited
        self._header = b""
        self._body: list[bytes] = []
        self._missing_bytes = 0

    def take(self, kind: int, payload: bytes) -> bool:
        """Whether it belongs to a message. Raises InvalidFrameError, LookupError or struct.error for a broken one."""
        if not self._deliver:
            if kind == _METHOD and payload.startswith(_DELIVER):
                self._deliver = payload
                return True
            return False
        if kind == _HEADER and not self._header:
            self._header = payload
            (self._missing_bytes,) = _BODY_SIZE.unpack_from(payload, _BODY_SIZE_AT)
        elif kind == _BODY and self._header:
            self._body.append(payload)
            self._missing_bytes -= len(payload)
        else:
            raise InvalidFrameError("a frame in the wrong place")
        if self._missing_bytes < 0:
            raise InvalidFrameError("a body larger than announced")
        if not self._missing_bytes:
            self._hand_over()
        return True

    def _hand_over(self) -> None:
        deliver, header, body = self._deliver, self._header, self._body
        self._deliver, self._header, self._body = b"", b"", []
        tag_at = 5 + deliver[4]  # behind the consumer's tag
        tag, redelivered = _TAG.unpack_from(deliver, tag_at)
        exchange_at = tag_at + _TAG.size
        key_at = exchange_at + 1 + deliver[exchange_at]
        key = deliver[key_at + 1 : key_at + 1 + deliver[key_at]]
        content = body[0] if len(body) == 1 else b"".join(body)
        self._take(Delivered(tag, bool(redelivered), key, header[_BODY_SIZE_AT + _BODY_SIZE.size :], content))
