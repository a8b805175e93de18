"""How the egress connects: the guard where sockets are made, TLS that is timed, tunnels through a proxy.

It stands on aiohttp's connector, which looks names up, tries their addresses and keeps connections for reuse, by the
URL's scheme, host, port and TLS context. A connection that is reused was checked when it was made, and is one to an
address that its endpoint's name had then; an address that is not allowed has no connection to reuse.
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import Sequence
from functools import partial
from typing import Final

import aiohttp
from aiohttp.abc import ResolveResult
from aiohttp.client_proto import ResponseHandler

from infra.addresses import Network, forbidden_reason
from infra.egress_attempt import ATTEMPT
from infra.egress_failures import ProxyFailure, system_words
from infra.egress_rules import EgressRules, OutboundProxy
from infra.egress_tunnel import Tunnel
from infra.response_guard import printable_address
from schemas.deliveries import Failure

# Shorter than the 5 s after which many servers close an idle connection: a POST on a connection that the server is just
# closing fails, and is not ours to repeat.
_KEEPALIVE_S: Final = 4.0
# aiohttp tries the addresses of a name again and again, one fewer each time; a name with thousands of addresses would
# keep the event loop busy until the deadline.
_ADDRESSES_A_FAMILY: Final = 4
# For each of the proxy's addresses, so that one that keeps silent leaves time for the next. The system sends a SYN that
# was lost again after 1 s (RFC 6298 section 2.1): one may be.
_PROXY_CONNECT_S: Final = 3.0


class Handler(ResponseHandler):
    """Closes at once. Politely, TLS waits half a minute for the peer to end it too."""

    def close(self) -> None:
        self.abort()


class TimedTls(ssl.SSLObject):
    """Tells the attempt that it is TLS that takes so long, and not the connection before it."""

    def do_handshake(self) -> None:
        attempt = ATTEMPT.get(None)
        if attempt is not None:
            attempt.handshakes()
        super().do_handshake()


class FewAddresses(aiohttp.AsyncResolver):
    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await super().resolve(host, port, family)
        few: list[ResolveResult] = []
        for wanted in (socket.AF_INET6, socket.AF_INET):
            few += [result for result in found if result["family"] == wanted][:_ADDRESSES_A_FAMILY]
        return few


class _ForbiddenAddress(OSError):
    """Raised where the socket would be made; `Attempt.forbidden` tells it to `post`, whatever wraps this."""


def open_socket(info: aiohttp.AddrInfoType, allow: Sequence[Network]) -> socket.socket:
    """The socket for one address, or `_ForbiddenAddress`."""
    family, kind, protocol, _, address = info
    attempt = ATTEMPT.get()
    attempt.tries(printable_address(address), literal=address[0] == attempt.host)
    host = f"{address[0]}%{address[3]}" if len(address) > 3 and address[3] else address[0]
    reason = forbidden_reason(host, allow)
    if reason is not None:
        attempt.forbidden = reason
        raise _ForbiddenAddress(errno.EACCES, reason)
    return socket.socket(family, kind, protocol)


class EgressConnector(aiohttp.TCPConnector):
    """aiohttp's connector, with our guard over its sockets; what goes through the proxy is tunnelled.

    `http://` endpoints are tunnelled too: what answers in the tunnel is the endpoint, so that no answer of the proxy's
    own is ever taken for one, and it is never shown the proxy's password.
    """

    def __init__(self, rules: EgressRules, resolver: aiohttp.abc.AbstractResolver, tls: ssl.SSLContext) -> None:
        super().__init__(
            resolver=resolver,
            socket_factory=lambda info: open_socket(info, rules.allow),
            ssl=tls,
            limit=0,  # the caller's caps are the limit; waiting here would eat the deadline
            keepalive_timeout=_KEEPALIVE_S,
        )
        handler: type[ResponseHandler] = Handler
        self._factory = partial(handler, loop=asyncio.get_running_loop())
        self._rules = rules
        self._asking: set[asyncio.Transport] = set()  # connections to the proxy that are no tunnel yet

    async def close(self, *, abort_ssl: bool = False) -> None:
        for transport in self._asking:
            transport.abort()
        await super().close(abort_ssl=abort_ssl)

    async def _create_connection(
        self, req: aiohttp.ClientRequest, traces: list[aiohttp.tracing.Trace], timeout: aiohttp.ClientTimeout
    ) -> ResponseHandler:
        if isinstance(req.ssl, ssl.SSLContext):
            req.ssl.sslobject_class = TimedTls
        host, port = req.url.raw_host or "", req.url.port or 0
        proxy = self._rules.proxy_for(host)
        if proxy is None:
            return await super()._create_connection(req, traces, timeout)
        transport = await self._tunnel(proxy, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        if req.is_ssl():
            # It closes the transport when it fails.
            _, handler = await self._start_tls_connection(transport, req, timeout)
            return handler
        handler = self._factory()
        transport.set_protocol(handler)
        handler.connection_made(transport)
        transport.resume_reading()
        return handler

    async def _tunnel(self, proxy: OutboundProxy, authority: str) -> asyncio.Transport:
        """A connection to `authority` through `proxy`, with nothing read from it yet."""
        attempt = ATTEMPT.get()
        attempt.proxy = printable_address((proxy.host, proxy.port))
        try:
            found = await self._resolve_host(proxy.host, proxy.port)
        except OSError as error:
            reason = f"the outbound proxy {attempt.proxy} does not resolve: {system_words(error)}"
            raise ProxyFailure(Failure.INTERNAL, reason) from error
        transport, tunnel = await self._reach(proxy, found)
        self._asking.add(transport)
        try:
            attempt.tunnel_asked = True
            tunnel.ask(authority, proxy.authorization)
            await tunnel.opened
        except BaseException:
            transport.abort()
            raise
        finally:
            self._asking.discard(transport)
        if transport.is_closing():
            raise ProxyFailure(Failure.CONNECT, f"the outbound proxy closed its connection to {authority}")
        return transport

    async def _reach(self, proxy: OutboundProxy, found: Sequence[ResolveResult]) -> tuple[asyncio.Transport, Tunnel]:
        """A connection to the proxy, at the first of its addresses that takes one.

        Its sockets are made for what the proxy's own name resolved to, and only here: the guard of the endpoints'
        sockets knows no exception for it.
        """
        attempt, loop = ATTEMPT.get(), asyncio.get_running_loop()
        why = "it has no address"
        for one in found:
            address = (one["host"], proxy.port)
            attempt.tries(printable_address(address), literal=one["host"] == proxy.host)
            try:
                return await loop.create_connection(lambda: Tunnel(loop), sock=await _connected(address))
            except TimeoutError:
                why = f"no answer within {_PROXY_CONNECT_S:g} s"
            except OSError as error:
                why = system_words(error)
        reason = f"no connection to the outbound proxy at {attempt.address or attempt.proxy}: {why}"
        raise ProxyFailure(Failure.INTERNAL, reason)


async def _connected(address: tuple[str, int]) -> socket.socket:
    """A socket with a connection. Raises OSError, TimeoutError among them."""
    made = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        async with asyncio.timeout(_PROXY_CONNECT_S):
            await asyncio.get_running_loop().sock_connect(made, address)
    except BaseException:
        made.close()
        raise
    return made
