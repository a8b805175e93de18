"""What an HTTP connection may send us, and when; kept between the transport and aiohttp's parser.

aiohttp bounds a header and a body that nobody reads. It does not bound the rest, so an endpoint could (each was tried):
- flood an idle kept-alive connection: every message is parsed and queued, until memory is full;
- leave an answer there, to be taken for the answer to the next request;
- send interim answers (1xx) without end: parsing them takes the whole event loop until the deadline;
- never read: `transport.close()` waits to flush the request, so the socket and the body would stay for good.
"""

import asyncio
from enum import Enum, auto
from time import monotonic
from typing import Final

from aiohttp import StreamReader
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection

HEAD_MAX_BYTES: Final = 65_536  # status line, headers and interim answers together
# Around a body: what frames its chunks, and what was on its way when flow control paused it. Far more than both need.
_BODY_OVERHEAD_BYTES: Final = 1_048_576
_BODY_OVERHEAD_FACTOR: Final = 16  # a byte in a chunk of its own takes six
_PIECE_BYTES: Final = 16_384
_QUEUED_MAX: Final = 8  # answers parsed and not yet taken: one, and a few interim ones


class _Phase(Enum):
    IDLE = auto()  # nothing was asked
    HEAD = auto()  # asked, no final answer taken yet
    BODY = auto()  # aiohttp's flow control is at work


class ResponseGuard(asyncio.Protocol):
    """Passes on what was asked for, and aborts the connection at anything else. One for each connection."""

    __slots__ = ("_content", "_handler", "_left_bytes", "_phase", "_transport", "fault", "first_byte_s", "peer")

    def __init__(self, transport: asyncio.Transport, handler: ResponseHandler) -> None:
        self._transport = transport
        self._handler = handler
        self._phase = _Phase.IDLE
        self._left_bytes = 0  # of this phase
        self._content: StreamReader | None = None
        self.peer = printable_address(transport.get_extra_info("peername"))
        self.first_byte_s: float | None = None  # when the answer to this request began to come, by `monotonic`
        self.fault: str | None = None  # why the connection was aborted, as the end of a sentence about the endpoint

    @classmethod
    def over(cls, connection: Connection) -> "ResponseGuard | None":
        """The guard of a connection, put in place at its first request; None when the connection is already lost."""
        handler, transport = connection.protocol, connection.transport
        if handler is None or transport is None:
            return None
        present = transport.get_protocol()
        if isinstance(present, cls):
            return present
        guard = cls(transport, handler)
        transport.set_protocol(guard)
        return guard

    def begin(self) -> None:
        """A request is about to be written."""
        self._phase = _Phase.HEAD
        self._left_bytes = HEAD_MAX_BYTES
        self.first_byte_s = None

    def answered(self, content: StreamReader, *, keep_bytes: int) -> None:
        """The final answer's head was taken; `content` is its body, of which `keep_bytes` will be read.

        The body may have ended already, and the connection be idle again.
        """
        if self._phase is not _Phase.IDLE:
            self._phase = _Phase.BODY
            self._left_bytes = _BODY_OVERHEAD_BYTES + _BODY_OVERHEAD_FACTOR * keep_bytes
            self._content = content
            self._tell_reader()

    def end(self) -> None:
        """The connection goes back to the pool or is closed."""
        self._phase = _Phase.IDLE
        self._content = None
        if not self._transport.is_closing() and self._transport.get_write_buffer_size():
            self._transport.abort()

    def abort(self) -> None:
        """Drop the connection at once, without waiting for the peer to read, or to end TLS."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._phase is _Phase.BODY:
            self._body_received(data)
        elif self._phase is _Phase.IDLE:
            self._transport.abort()
        elif len(data) <= _PIECE_BYTES:
            self._head_received(data)
        else:
            self._much_received(data)

    def _head_received(self, data: bytes) -> None:
        if self.first_byte_s is None:
            self.first_byte_s = monotonic()
        self._left_bytes -= len(data)
        if self._left_bytes < 0:
            self._refuse(f"sent {HEAD_MAX_BYTES} bytes without an answer in them")
            return
        self._handler.data_received(data)
        if len(self._handler) > _QUEUED_MAX:
            self._refuse("sent many answers to one request")

    def _much_received(self, data: bytes) -> None:
        # In pieces, so that a flood is noticed after a piece. Once the final answer's body is more than is wanted,
        # flow control has paused the transport, and the rest is aiohttp's to keep.
        for start in range(0, len(data), _PIECE_BYTES):
            if self._transport.is_closing():
                return
            if not self._transport.is_reading():
                self._handler.data_received(data[start:])
                return
            self._head_received(data[start : start + _PIECE_BYTES])

    def _body_received(self, data: bytes) -> None:
        self._left_bytes -= len(data)
        if self._left_bytes < 0:
            self._refuse("sent much around a small body")
            return
        self._handler.data_received(data)
        if self._phase is _Phase.IDLE and len(self._handler):
            self._transport.abort()  # behind the body's end, in one piece with it, came what nobody asked for
        self._tell_reader()

    def _tell_reader(self) -> None:
        # When a body breaks HTTP's rules, aiohttp (3.14) tells whoever waits for an answer, and nobody does any more:
        # the reader of the body would wait until the deadline.
        fault = self._handler.exception()
        if fault is not None and self._content is not None and self._content.exception() is None:
            self._content.set_exception(fault)

    def _refuse(self, fault: str) -> None:
        self.fault = fault
        self._transport.abort()

    def eof_received(self) -> None:
        self._handler.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._handler.connection_lost(exc)

    def pause_writing(self) -> None:
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        self._handler.resume_writing()


def printable_address(address: object) -> str | None:
    """A socket's address as `203.0.113.7:443` or `[2001:db8::7]:443`."""
    match address:
        case (str(host), int(port), *_):
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        case _:
            return None
