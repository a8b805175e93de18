"""What an operator lets webhooks go to: schemes, ports, networks, and through which proxy. Pure: no look-up, no socket.

The same rules are asked when a URL is given, for an early answer, and at every request, so that a setting which an
operator tightens is obeyed for subscriptions that there are already. Every refusal says what the operator may allow,
and by which variable. What a name resolves to is not known here: the egress judges that where it makes the socket.
"""

from base64 import b64encode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_network
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import unquote, urlsplit

from infra.addresses import Network, is_within, refused_host, refused_notation
from schemas.urls import url_fault

if TYPE_CHECKING:
    from infra.settings import Settings

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_LAST_PORT: Final = 65_535


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a URL leads: its host in lower case, without brackets, and its port, said or not."""

    scheme: str
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class OutboundProxy:
    """An HTTP proxy that is asked for tunnels; `authorization` is the value of its header."""

    host: str
    port: int
    authorization: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Exceptions:
    """What is reached directly although there is a proxy: names, `.suffix`es, and networks for literal addresses."""

    names: frozenset[str] = frozenset()
    suffixes: tuple[str, ...] = ()
    networks: tuple[Network, ...] = ()

    def hold(self, host: str) -> bool:
        name = host.removesuffix(".")
        return name in self.names or name.endswith(self.suffixes) or is_within(host, self.networks)


@dataclass(frozen=True, slots=True)
class EgressRules:
    """The rules of one process, fixed for as long as it runs."""

    allow: tuple[Network, ...] = ()
    http: bool = False
    ports: tuple[range, ...] = (range(443, 444),)
    proxy: OutboundProxy | None = None
    direct: Exceptions = Exceptions()

    @classmethod
    def from_settings(cls, settings: "Settings") -> Self:
        proxy = settings.egress_proxy
        return cls(
            allow=settings.egress_allow,
            http=settings.egress_http,
            ports=read_ports(settings.egress_ports),
            proxy=None if proxy is None else read_proxy(proxy.get_secret_value()),
            direct=read_exceptions(settings.egress_no_proxy),
        )

    def refusal(self, url: str) -> str | None:
        """Why no webhook goes to `url`, as the end of a sentence about it, or None when its text has nothing to refuse.

        It sees the scheme, the port, how the host is written, and literal addresses.
        """
        if (fault := url_fault(url)) is not None:
            return fault
        refusals = [one for one in self._refusals(destination(url)) if one is not None]
        return "; and ".join(refusals) or None

    def proxy_for(self, host: str) -> OutboundProxy | None:
        """The proxy that requests to `host` go through, None when they go directly."""
        return None if self.proxy is None or self.direct.hold(host) else self.proxy

    def _refusals(self, to: Destination) -> Iterator[str | None]:
        if (reason := refused_host(to.host, self.allow)) is not None:
            yield f"must lead to a public address: {reason}"
        if to.scheme == "http" and not self.http:
            yield (
                "must begin with https://, because http:// sends events in the clear; "
                "an operator may allow it with HOOKHARE_EGRESS_HTTP=true"
            )
        if not any(to.port in ports for ports in self.ports):
            allowed = ", ".join(str(one[0]) if len(one) == 1 else f"{one[0]}-{one[-1]}" for one in self.ports)
            yield (
                f"must have a port that webhooks may go to ({allowed}), and not {to.port}; "
                "an operator may allow it with HOOKHARE_EGRESS_PORTS"
            )


def destination(url: str) -> Destination:
    """Where a URL that `url_fault` has nothing against leads."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if ":" in host:
        host = IPv6Address(host).compressed
    return Destination(parts.scheme, host, parts.port or _DEFAULT_PORTS[parts.scheme])


def read_ports(text: str) -> tuple[range, ...]:
    """Ports and ranges of them, comma-separated: `443,8443,10000-10100`. Raises ValueError for anything else."""
    ranges = []
    for part in _parts([text]):
        first, dash, last = part.partition("-")
        low, high = _port(first), _port(last if dash else first)
        if low > high:
            raise ValueError(part)
        ranges.append(range(low, high + 1))
    if not ranges:
        raise ValueError(text)
    return tuple(ranges)


def read_proxy(url: str) -> OutboundProxy:
    """`http://[user:password@]host:port`. Raises ValueError, which never shows the URL, for anything else."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
    except ValueError:
        raise _no_proxy_url() from None
    beyond = parts.path not in {"", "/"} or parts.query or parts.fragment
    if parts.scheme != "http" or not host or not port or beyond or not (url.isascii() and url.isprintable()):
        raise _no_proxy_url()
    if refused_notation(host) is not None or url_fault(f"http://{parts.netloc.rpartition('@')[2]}") is not None:
        raise _no_proxy_url()
    if "@" not in parts.netloc:
        return OutboundProxy(host, port)
    credentials = b64encode(f"{user}:{password}".encode()).decode("ascii")  # RFC 7617 section 2
    return OutboundProxy(host, port, f"Basic {credentials}")


def read_exceptions(entries: Iterable[str]) -> Exceptions:
    """Host names, `.suffix`es and CIDRs. Raises ValueError that names what is none of these."""
    names, suffixes, networks = set(), [], []
    for entry in _parts(entries):
        try:
            networks.append(ip_network(entry))
            continue
        except ValueError:
            pass
        name = entry.lower().removesuffix(".")
        if url_fault(f"https://{name.removeprefix('.')}/") is not None or "/" in name or ":" in name:
            raise ValueError(entry)
        if name.startswith("."):
            suffixes.append(name)
        else:
            names.add(name)
    return Exceptions(frozenset(names), tuple(suffixes), tuple(networks))


def _parts(texts: Iterable[str]) -> Iterable[str]:
    return (part.strip() for text in texts for part in text.split(",") if part.strip())


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text) <= _LAST_PORT:
        raise ValueError(text)
    return int(text)


def _no_proxy_url() -> ValueError:
    return ValueError("must be http://host:port or http://user:password@host:port")
