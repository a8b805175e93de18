"""The one way out: POSTs a webhook to an endpoint that nobody here trusts.

Guarantees, whatever the endpoint does:
- No connection is made to an address that is not public, unless `egress_allow` says so. The check sits where the socket
  is made, so it sees the final address of every literal, notation and name; nothing resolves again after it.
- No request goes to a URL that the rules refuse (`infra/egress_rules.py`): scheme, port, how the host is written.
- With `egress_proxy`, everything but its exceptions goes through the proxy. Then only the proxy knows where a name
  leads, and it alone keeps private addresses out of reach; the remote address of an attempt is the proxy's.
- `timeout_s` is one deadline over look-up, connect, TLS, request, headers and body, kept to within 25 ms or so.
- At most `response_keep_bytes` of a body are kept, not decompressed; what is longer is cut, and the connection dropped.
- No redirect is followed, no cookie kept, no proxy of the environment used; TLS is verified.
- `post` never raises but CancelledError, and never sends a request twice.

What it leaves out: how many requests run at once, and when; that is the caller's.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import lru_cache, partial
from http import HTTPStatus
from typing import Final

import aiohttp
import msgspec
import structlog
from aiohttp import hdrs
from aiohttp.connector import Connection

from infra.deadlines import Deadlines
from infra.egress_attempt import ATTEMPT, Attempt
from infra.egress_connector import EgressConnector, FewAddresses, TimedTls
from infra.egress_failures import lateness, translated
from infra.egress_rules import EgressRules
from infra.request_head import Target, read_target
from infra.response_guard import ResponseGuard
from infra.response_headers import KEPT, selected
from infra.settings import Settings
from schemas.deliveries import Answered, AttemptResult, Failure, NoAnswer

_log = structlog.get_logger(__name__)

_CLOSE_S: Final = 5.0
_DNS_TRY_S: Final = 2.0
_DNS_TRIES: Final = 2
_NO_LIMIT: Final = aiohttp.ClientTimeout()  # the one deadline is `post`'s
_STOPPING: Final = (Failure.INTERNAL, "the dispatcher is stopping")


class _Request(msgspec.Struct, frozen=True, eq=False):
    """What is sent, and how much of the answer's body is kept."""

    method: str
    url: str
    tls: ssl.SSLContext | None
    headers: Mapping[str, str]
    body: bytes
    content_type: str | None
    keep_bytes: int
    keep_headers: Sequence[str] = KEPT


class Egress:
    """POSTs webhooks. Open between `open_egress`'s entry and exit."""

    __slots__ = ("_attempts", "_closing", "_connector", "_deadlines", "_keep_bytes", "_targets", "_tls_targets")

    def __init__(self, connector: EgressConnector, rules: EgressRules, *, keep_bytes: int) -> None:
        self._connector = connector
        self._targets = lru_cache(maxsize=8192)(partial(read_target, rules))  # of this event loop's
        # Each keeps its context alive, replaced or not.
        self._tls_targets = lru_cache(maxsize=256)(partial(read_target, rules))
        self._keep_bytes = keep_bytes
        self._attempts: set[Attempt] = set()
        self._deadlines = Deadlines()
        self._closing = False

    async def post(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes,
        timeout_s: float,
        content_type: str = "application/json",
        tls: ssl.SSLContext | None = None,
        keep_bytes: int | None = None,
    ) -> AttemptResult:
        """POST `body` to `url`, once, and tell what became of it. Raises nothing but CancelledError.

        `headers` are token names and printable ASCII values; those that are ours or frame the message are refused.
        `tls` and `keep_bytes` replace the egress's own.
        """
        keep_bytes = keep_bytes or self._keep_bytes
        request = _Request(hdrs.METH_POST, url, tls, headers, body, content_type, keep_bytes)
        return await self._make(request, timeout_s)

    async def options(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        timeout_s: float,
        tls: ssl.SSLContext | None = None,
        keep_headers: Sequence[str] = KEPT,
    ) -> AttemptResult:
        """As `post`, an OPTIONS request without a body. Of the answer's headers, those of these names are kept."""
        request = _Request(hdrs.METH_OPTIONS, url, tls, headers, b"", None, self._keep_bytes, keep_headers)
        return await self._make(request, timeout_s)

    async def _make(self, request: _Request, timeout_s: float) -> AttemptResult:
        attempt = Attempt()
        context = ATTEMPT.set(attempt)
        self._attempts.add(attempt)
        deadline = self._deadlines.within(timeout_s)
        try:
            with deadline:
                return await self._send(attempt, request)
        except Exception as error:  # noqa: BLE001 the border: every failure of an attempt is a value
            if deadline.has_passed:
                failure, reason = lateness(attempt, timeout_s)
            elif self._closing:
                failure, reason = _STOPPING
            else:
                failure, reason = translated(error, attempt)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            failure, reason = _STOPPING  # not this task was canceled, but what it waits for, because the egress closes
        finally:
            ATTEMPT.reset(context)
            self._attempts.discard(attempt)
        address = attempt.guard.peer if attempt.guard is not None else attempt.address
        return NoAnswer(failure, reason, attempt.elapsed_ms(), address, attempt.timings())

    async def close(self) -> None:
        """End what is under way, as a failure, and every connection. Takes a few seconds at most."""
        self._closing = True
        for attempt in self._attempts:
            if attempt.guard is not None:
                attempt.guard.abort()  # a polite end waits until the peer has read the request
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._connector.close()
        except TimeoutError:
            _log.warning("egress.close_timed_out")

    async def _send(self, attempt: Attempt, request: _Request) -> AttemptResult:
        if self._closing:
            failure, reason = _STOPPING
            return NoAnswer(failure, reason, attempt.elapsed_ms(), None)
        targets = self._targets if request.tls is None else self._tls_targets
        target = targets(request.url, request.method, request.tls)
        if not isinstance(target, Target):
            return NoAnswer(Failure.FORBIDDEN_ADDRESS, target, attempt.elapsed_ms(), None)
        attempt.host = target.host
        try:
            head = target.head(request.headers, len(request.body), request.content_type)
        except ValueError as fault:
            return NoAnswer(Failure.INTERNAL, str(fault), attempt.elapsed_ms(), None)
        connection = await self._connector.connect(target.place, [], _NO_LIMIT)
        guard = None
        try:
            guard = ResponseGuard.over(connection)
            if guard is None:
                raise aiohttp.ServerDisconnectedError
            attempt.sends(guard)
            return await self._exchange(attempt, connection, guard, head, request)
        finally:
            # A body that ended has given its connection back already. What still holds one is cut: there is no answer,
            # or more to come of it, or the connection was asked to become another protocol's.
            if connection.protocol is not None:
                connection.close()
                if guard is not None:
                    guard.abort()  # a polite end waits until the peer has read the request

    async def _exchange(
        self, attempt: Attempt, connection: Connection, guard: ResponseGuard, head: bytes, request: _Request
    ) -> Answered:
        """Write the request, in one piece, and take the answer.

        Written here and not by aiohttp's ClientSession, whose request, response, writer and (before Python 3.12) task
        for each POST took 75 of its 115 microseconds (measured).
        """
        handler, transport = connection.protocol, connection.transport
        assert handler is not None
        assert transport is not None
        guard.begin()
        connection.add_callback(guard.end)
        handler.set_response_params(
            read_until_eof=True, auto_decompress=False, read_bufsize=max(request.keep_bytes, 4096)
        )
        transport.write(head + request.body)  # no name for it: it would be kept until the answer ends
        message, content = await handler.read()
        while 100 <= message.code <= 199 and message.code != HTTPStatus.SWITCHING_PROTOCOLS:
            message, content = await handler.read()
        if not handler.upgraded:
            content.on_eof(connection.release)
        guard.answered(content, keep_bytes=request.keep_bytes)
        attempt.answers(message.code)
        kept = await _beginning(content, request.keep_bytes)
        return Answered(
            message.code,
            kept,
            message.headers.get("Retry-After"),
            attempt.elapsed_ms(),
            guard.peer,
            selected(message.headers, request.keep_headers),
            attempt.timings(),
        )


@asynccontextmanager
async def open_egress(
    settings: Settings, *, tls: ssl.SSLContext | None = None, nameservers: Sequence[str] | None = None
) -> AsyncIterator[Egress]:
    """The egress of a process. `tls` and `nameservers` (`host` or `host:port`) replace the system's."""
    rules = EgressRules.from_settings(settings)
    async with AsyncExitStack() as stack:
        if tls is None:
            tls = await asyncio.to_thread(ssl.create_default_context)  # reads the certificates: about 20 ms
        tls.sslobject_class = TimedTls
        resolver = FewAddresses(nameservers=nameservers, timeout=_DNS_TRY_S, tries=_DNS_TRIES)
        stack.push_async_callback(resolver.close)
        egress = Egress(EgressConnector(rules, resolver, tls), rules, keep_bytes=settings.response_keep_bytes)
        stack.push_async_callback(egress.close)
        yield egress


async def _beginning(content: aiohttp.StreamReader, keep_bytes: int) -> bytes:
    first = await content.read(keep_bytes)
    if len(first) >= keep_bytes or content.at_eof():
        return first
    kept = bytearray(first)
    while len(kept) < keep_bytes:
        more = await content.read(keep_bytes - len(kept))
        if not more:
            break
        kept += more
    return bytes(kept)
