"""Connections to the API: how many there may be, and for how long one may keep us waiting.

aiohttp bounds the head of a request in bytes (8,190 a line, 128 headers), and closes a connection on which no whole
head came for `KEEPALIVE_S`, whether it is silent or drips. What it leaves open is bounded here:

- More connections than `most`: the one that has waited longest without a request is closed for the new one; where all
  have one under way, the new one is. So whoever opens connections and sends nothing keeps nobody out.
- A head that began, and is not whole `HEAD_S` later, or that did not begin at all on a new connection.
- An answer that its caller does not take: when next to nothing (`LEAST_TAKEN_BYTES`) could be sent on for `STALLED_S`,
  the connection is cut. Who takes a large one slowly and steadily gets it all.
- Answers that wait in memory, `MAX_UNSENT_BYTES` in all: who has not taken anything for the longest is cut first.
- What aiohttp answers itself, as to what is no HTTP: in the one shape of errors, and without a traceback in the log.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from math import inf
from time import monotonic
from typing import Any, Final, cast

import structlog
from aiohttp import hdrs, web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestHandler
from uuid_utils.compat import uuid7

from consumer_api.answers import error_answer
from consumer_api.context import REQUEST_ID
from consumer_api.errors import ErrorCode, Fault, fault_of
from consumer_api.headers import secure

log = structlog.get_logger(__name__)

HEAD_S: Final = 20.0
STALLED_S: Final = 30.0
KEEPALIVE_S: Final = 75.0  # longer than proxies keep theirs, or they would send into a connection that we close
LEAST_TAKEN_BYTES: Final = 65_536
# What the system takes of an answer ahead of its caller. By itself it takes megabytes, and then nothing until a third
# of them are sent: a slow caller would look like one who takes nothing.
AHEAD_BYTES: Final = 262_144
LOOK_S: Final = 1.0  # how often
MAX_UNSENT_BYTES: Final = 268_435_456  # of answers in memory, over all connections, when it is looked

MAX_LINE_BYTES: Final = 8190
MAX_HEADERS: Final = 128

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Connection(RequestHandler):
    """A connection of aiohttp's that knows since when it keeps us waiting, by the monotonic clock."""

    __slots__ = ("_blocked_since_s", "_head_since_s", "_unsent_then_bytes", "_wire")

    def __init__(self, server: "BoundedServer", **given: Any) -> None:
        super().__init__(server, **given)
        self._wire: asyncio.Transport | None = None
        self._head_since_s: float | None = None
        self._blocked_since_s: float | None = None
        self._unsent_then_bytes = 0

    @property
    def waits(self) -> bool:
        """Whether it is open for the next request, and none of it is under way: nor one that has just come whole."""
        return self._waiter is not None and not self._waiter.done()

    @property
    def address(self) -> str | None:
        """Of its other end."""
        peer = self.peername
        return str(peer[0]) if isinstance(peer, tuple) else peer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = cast(asyncio.Transport, transport)
        assert isinstance(self._manager, BoundedServer)
        if not self._manager.makes_room():
            self._force_close = True
            self._wire.abort()
            return
        self._head_since_s = monotonic()
        self._wire.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, AHEAD_BYTES)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._wire = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        heads = self._request_count
        super().data_received(data)
        if self._request_count > heads:
            self._head_since_s = None
        elif data and self.waits and self._head_since_s is None:
            self._head_since_s = monotonic()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._blocked_since_s = None  # some of it was taken

    @property
    def unsent_bytes(self) -> int:
        """Of answers that wait in memory for their caller to take them."""
        return 0 if self._wire is None else self._wire.get_write_buffer_size()

    @property
    def blocked_since_s(self) -> float:
        """When it was first seen that next to nothing could be sent on; never, if it was not."""
        return inf if self._blocked_since_s is None else self._blocked_since_s

    def cut(self) -> None:
        """End it now, whatever has not been sent."""
        wire = self._wire
        self.force_close()
        if wire is not None:
            wire.abort()

    def keeps_waiting(self, now_s: float) -> str | None:
        """Why it should be cut, if it should."""
        if self._wire is None:
            return None
        unsent_bytes = self.unsent_bytes
        if unsent_bytes == 0:
            self._blocked_since_s = None
        elif self._blocked_since_s is None or unsent_bytes <= self._unsent_then_bytes - LEAST_TAKEN_BYTES:
            self._blocked_since_s, self._unsent_then_bytes = now_s, unsent_bytes
        elif now_s - self._blocked_since_s > STALLED_S:
            return "its answer was not taken"
        else:  # more may have been written meanwhile
            self._unsent_then_bytes = max(self._unsent_then_bytes, unsent_bytes)
        if self._head_since_s is not None and now_s - self._head_since_s > HEAD_S:
            return "the head of a request did not come"
        return None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What is no HTTP, as an error of ours. It is the caller's doing, so it is no error in the log."""
        if status >= 500:
            log.error("api.unexpected", exc_info=exc)
            fault = Fault(500, ErrorCode.INTERNAL, "an error of ours; the log has it")
        else:
            log.info("api.unreadable", address=request.remote, error=type(exc).__name__)
            fault = Fault(400, ErrorCode.INVALID_REQUEST, _unreadable(exc))
        if request.writer.output_size > 0:
            raise ConnectionError("an answer is on its way already")
        response = error_answer(fault, request_id=uuid7().hex)
        secure(response)
        response.force_close()
        return response


def _unreadable(error: BaseException | None) -> str:
    if isinstance(error, LineTooLong):
        return f"a line of the request's head is longer than {MAX_LINE_BYTES} bytes"
    return f"the request is no HTTP that can be understood, or has more than {MAX_HEADERS} headers"


class BoundedServer(web.Server):
    """Makes connections, of which so many may be open."""

    def __init__(self, answer: Answer, *, most: int, **given: Any) -> None:
        super().__init__(answer, **given)
        self._most = most
        self._full = False

    def __call__(self) -> Connection:
        return Connection(self, loop=self._loop, **self._kwargs)

    def makes_room(self) -> bool:
        """Whether there is a place for one more connection."""
        if len(self._connections) < self._most:
            self._full = False
            return True
        if not self._full:  # once, not for each of a flood
            log.warning("api.connections_full", most=self._most)
            self._full = True
        # In the order in which they were made.
        waiting = next((one for one in self._connections if isinstance(one, Connection) and one.waits), None)
        if waiting is None:
            return False
        waiting.cut()
        self._connections.pop(waiting, None)
        return True

    async def look_after(self) -> None:
        """Cut those that keep us waiting or hold too much, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                self._look()
            except Exception:  # of ours, and no reason to bound nothing from now on
                log.exception("api.unexpected")

    def _look(self) -> None:
        now_s = monotonic()
        open_ones = [one for one in self.connections if isinstance(one, Connection)]
        for one in open_ones:
            if (reason := one.keeps_waiting(now_s)) is not None:
                _cut(one, reason)
        unsent_bytes = sum(one.unsent_bytes for one in open_ones)
        for one in sorted(open_ones, key=lambda one: one.blocked_since_s):
            if unsent_bytes <= MAX_UNSENT_BYTES:
                return
            unsent_bytes -= one.unsent_bytes
            _cut(one, "too much is waiting to be taken")


def _cut(connection: Connection, reason: str) -> None:
    log.info("api.connection_cut", reason=reason, address=connection.address)
    connection.cut()


class BoundedRunner(web.AppRunner):
    """Runs an application over a `BoundedServer`."""

    def __init__(self, app: web.Application, *, most: int, **given: Any) -> None:
        super().__init__(app, **given)
        self._most = most
        self._looking: asyncio.Task[None] | None = None

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        server = BoundedServer(
            enveloped(made.request_handler),
            most=self._most,
            request_factory=made.request_factory,
            **self._kwargs,
        )
        self._looking = asyncio.create_task(server.look_after())
        return server

    async def _cleanup_server(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])
        await super()._cleanup_server()


def enveloped(answer: Answer) -> Answer:
    """As `answer`, and what aiohttp would answer before any middleware of ours, in the one shape of errors.

    An Expect header that is not met is answered here: aiohttp fails at one that is no text.
    """

    async def answered(request: web.BaseRequest) -> web.StreamResponse:
        expected = request.headers.get(hdrs.EXPECT, "")
        if expected and expected.lower() != "100-continue":
            fault = fault_of(web.HTTPExpectationFailed())
            assert fault is not None
            request[REQUEST_ID] = uuid7().hex
            response = error_answer(fault, request_id=request[REQUEST_ID])
            secure(response)
            return response
        return await answer(request)

    return answered
