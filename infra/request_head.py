"""What an endpoint reads before the body: the request line and the headers, which are the same for each URL but for the
caller's own."""

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Final
from urllib.parse import urlsplit

import aiohttp
from aiohttp import hdrs
from yarl import URL

from infra.egress_rules import EgressRules, destination

# What the caller may not set: what we set, what frames the message, and what speaks to the connection.
OWN_HEADERS: Final = frozenset(
    {
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
    }
)
_TOKEN: Final = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")  # RFC 9110 section 5.6.2, lower case
USER_AGENT: Final = f"User-Agent: Hookhare/{version('hookhare')}\r\n"
_UNLESS_NAMED: Final = {
    "accept": "Accept: */*\r\n",
    "accept-encoding": "Accept-Encoding: identity\r\n",  # the beginning of a compressed body tells a person nothing
}


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """A URL as it is connected to, and how every request to it begins.

    `place` is never sent: aiohttp's connector asks it where to.
    """

    host: str
    place: aiohttp.ClientRequest
    beginning: str

    def head(self, headers: Mapping[str, str], body_bytes: int, content_type: str | None = "application/json") -> bytes:
        """The head of a request with the caller's `headers`, and a body of so many bytes of that type, or no body.

        Raises ValueError for a header that is ours to set or frames the message, or is not printable ASCII.
        """
        unless_named = _unless_named(tuple(headers))
        lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
        values = "".join(headers.values())
        if not (values.isascii() and values.isprintable()):
            raise ValueError(_unprintable(headers))
        kind = "" if content_type is None else f"Content-Type: {content_type}\r\n"
        head = f"{self.beginning}{kind}{''.join(lines)}{unless_named}Content-Length: {body_bytes}\r\n\r\n"
        return head.encode("ascii")


def read_target(
    rules: EgressRules, url: str, method: str = hdrs.METH_POST, tls: ssl.SSLContext | None = None
) -> Target | str:
    """What to connect to and to ask for, or why `rules` refuse `url`. Path and query stay as they are, to the letter.

    `tls` replaces the connector's own; connections are shared only between requests with the same one. Runs within an
    event loop.
    """
    if (refusal := rules.refusal(url)) is not None:
        return f"the URL {refusal}"
    try:
        read, written, to = URL(url), urlsplit(url), destination(url)
        # The rules judged what urllib reads, and yarl says where it is connected to.
        if (read.scheme, read.raw_host, read.port) != (to.scheme, to.host, to.port):
            return "the URL must be one that every reader takes for the same"
        asked = f"{written.path or '/'}{f'?{written.query}' if written.query else ''}"
        exact = URL(f"{read.scheme}://{read.host_port_subcomponent}{asked}", encoded=True)
        place = aiohttp.ClientRequest(method, exact, loop=asyncio.get_running_loop(), ssl=tls or True)
    except (ValueError, IndexError):  # IndexError: yarl, over brackets within a host
        return "the URL must be one that every reader takes for the same"
    head = f"{method} {asked} HTTP/1.1\r\nHost: {place.headers[hdrs.HOST]}\r\n{USER_AGENT}"
    return Target(exact.raw_host or "", place, head)


@lru_cache(maxsize=8192)  # an endpoint's are the same each time
def _unless_named(names: tuple[str, ...]) -> str:
    """The lines for what the caller has no headers for. Raises ValueError for a header that it may not set."""
    for name in names:
        if (fault := header_fault(name)) is not None:
            raise ValueError(f"the header {name!r} {fault}")
    named = set(map(str.lower, names))
    return "".join(line for name, line in _UNLESS_NAMED.items() if name not in named)


def _unprintable(headers: Mapping[str, str]) -> str:
    name = next(name for name, value in headers.items() if not (value.isascii() and value.isprintable()))
    return f"the header {name!r} has a value that is not printable ASCII"


def header_fault(name: str) -> str | None:
    """Why the caller may not set the header `name`, as the end of a sentence."""
    lower = name.lower()
    if not name or not name.isascii() or not _TOKEN.issuperset(lower):
        return "is not a header's name"
    return "is not the caller's to set" if lower in OWN_HEADERS else None
