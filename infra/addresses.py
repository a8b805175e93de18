"""Which addresses a webhook may reach: only public ones, and what an operator allows on top.

The lists are explicit. `ipaddress.is_global` is not asked, because it takes for global what is not (Python 3.11): all
multicast, NAT64 and 6to4 forms of private addresses, IPv4-compatible ones, site-local ones, Azure's 168.63.129.16.
Sources: the IANA special-purpose address registries for IPv4 and IPv6. IPv6 is refused unless it is global unicast.
"""

from collections.abc import Iterable, Sequence
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

Network = IPv4Network | IPv6Network

REMEDY: Final = "an operator may allow its network with HOOKHARE_EGRESS_ALLOW"

_REFUSED_IPV4: Final = tuple(
    (IPv4Network(network), what)
    for network, what in (
        ("0.0.0.0/8", "an address of this host itself"),
        ("10.0.0.0/8", "a private address"),
        ("100.64.0.0/10", "a carrier's shared address"),
        ("127.0.0.0/8", "a loopback address"),
        ("169.254.0.0/16", "a link-local address, where clouds keep their metadata"),
        ("172.16.0.0/12", "a private address"),
        ("192.0.0.0/24", "reserved for protocols"),
        ("192.0.2.0/24", "reserved for documentation"),
        ("192.88.99.0/24", "a 6to4 relay's address"),
        ("192.168.0.0/16", "a private address"),
        ("198.18.0.0/15", "reserved for benchmarks"),
        ("198.51.100.0/24", "reserved for documentation"),
        ("203.0.113.0/24", "reserved for documentation"),
        ("224.0.0.0/4", "a multicast address"),
        ("240.0.0.0/4", "a reserved address"),
        ("168.63.129.16/32", "Azure's platform address"),
    )
)
_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")
_REFUSED_IPV6: Final = tuple(
    (IPv6Network(network), what)
    for network, what in (
        ("2001::/23", "reserved for protocols and tunnels"),
        ("2001:db8::/32", "reserved for documentation"),
        ("2002::/16", "a 6to4 tunnel's address"),
        ("3fff::/20", "reserved for documentation"),
        # Outside of 2000::/3, so refused in any case; here for the reason that they are refused with.
        ("::1/128", "a loopback address"),
        ("::/128", "the unspecified address"),
        ("fc00::/7", "a private address"),
        ("fe80::/10", "a link-local address"),
        ("ff00::/8", "a multicast address"),
    )
)
_NAT64: Final = IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are the IPv4 address behind the gateway


def forbidden_reason(address: str, allow: Iterable[Network]) -> str | None:
    """Why `address` (as a socket gives it) must not be connected to, or None when it may be.

    An IPv4 address inside an IPv6 one (mapped, NAT64) is judged as the IPv4 address that it is, by `allow` too.
    """
    try:
        judged = _unwrapped(address)
    except AddressValueError:
        return f"{address} is not a plain IP address"
    if any(judged.version == network.version and judged in network for network in allow):
        return None
    refused = _REFUSED_IPV4 if isinstance(judged, IPv4Address) else _REFUSED_IPV6
    for network, what in refused:
        if judged in network:
            return f"{address} is {what}"
    if isinstance(judged, IPv6Address) and judged not in _GLOBAL_UNICAST:
        return f"{address} is not a public address"
    return None


def refused_host(host: str, allow: Sequence[Network]) -> str | None:
    """Why the host of a URL, in lower case and without brackets, is refused as it stands, without a look-up.

    It sees literal addresses and localhost. What a name resolves to is seen when it is connected to.
    """
    if ":" in host:
        return _with_remedy(forbidden_reason(host, allow))
    name = host.removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):  # always loopback: RFC 6761 section 6.3
        if forbidden_reason("::1", allow) is None:
            return None
        return _with_remedy(_of_localhost(host, forbidden_reason("127.0.0.1", allow)))
    if (notation := refused_notation(host)) is not None:
        return notation
    return _with_remedy(forbidden_reason(host, allow)) if _is_number(host) else None


def is_within(host: str, networks: Iterable[Network]) -> bool:
    """Whether `host` is a literal address in one of `networks`; an IPv4 one inside an IPv6 one is what it is inside."""
    try:
        address = _unwrapped(host)
    except AddressValueError:
        return False
    return any(address.version == network.version and address in network for network in networks)


def refused_notation(host: str) -> str | None:
    """Why `host` is refused for the way that it writes an address.

    127.1, 0x7f.1, 2130706433, 017700000001 and 127.0.0.1. are addresses to the C library, names or nothing to others.
    What readers disagree about has no honest use in a webhook's URL. As in the URL standard (WHATWG), a host is meant
    as an IPv4 address when its last label is a number.
    """
    if ":" in host or not _is_number(host):
        return None
    try:
        IPv4Address(host)
    except AddressValueError:
        return f"{host} is an address in another notation than four decimal numbers"
    return None


def _with_remedy(reason: str | None) -> str | None:
    return None if reason is None else f"{reason}; {REMEDY}"


def _of_localhost(host: str, reason: str | None) -> str | None:
    return None if reason is None else f"{host} is this machine, and {reason}"


def _is_number(host: str) -> bool:
    last = host.rstrip(".").rpartition(".")[2]
    return last.isdigit() or last.startswith("0x")


def _unwrapped(address: str) -> IPv4Address | IPv6Address:
    """The address that packets end up at. Raises AddressValueError, also for one with a zone (`fe80::1%eth0`)."""
    if ":" not in address:
        return IPv4Address(address)
    if "%" in address:
        raise AddressValueError(address)
    outer = IPv6Address(address)
    if outer.ipv4_mapped is not None:
        return outer.ipv4_mapped
    if outer in _NAT64:
        return IPv4Address(int(outer) & 0xFFFF_FFFF)
    return outer
