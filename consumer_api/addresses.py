"""Where a request comes from. Pure.

A proxy's word is taken only from a proxy that is trusted: anybody may send `X-Forwarded-For`, and whoever could choose
an address would pass for another in the audit log, and for a new one with each wrong key.
"""

from collections.abc import Sequence
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final

from infra.addresses import Network, is_within

UNKNOWN: Final = "unknown"  # of a connection that has none, as over a Unix socket
_MAX_HOPS: Final = 20
_IPV6_PREFIX: Final = 64  # one subscriber's, who has all addresses of it to choose from


def caller_address(peer: str | None, forwarded: Sequence[str], trusted: Sequence[Network]) -> str:
    """The address that a request comes from: the connection's, or the one that a trusted proxy says.

    `forwarded` are the values of `X-Forwarded-For`, to which each proxy adds at the end whom it was asked by. They are
    read from there as long as who says it is trusted itself; what is no address ends it.
    """
    address = _plain(peer or "") or UNKNOWN
    hops = [hop for value in forwarded for hop in value.split(",")]
    for hop in reversed(hops[-_MAX_HOPS:]):
        if not is_within(address, trusted) or (said := _plain(hop.strip())) is None:
            break
        address = said
    return address


def neighbourhood(address: str) -> str:
    """What an address is counted as: itself, or the network of an IPv6 address."""
    return str(ip_network((address, _IPV6_PREFIX), strict=False)) if ":" in address else address


def _plain(text: str) -> str | None:
    """An address in its one form: without port, brackets and zone, an IPv4 one inside an IPv6 one as what it is."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    inside = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(inside or address)
