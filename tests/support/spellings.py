"""Addresses that no webhook may reach, in the spellings that some reader or other takes for them (for Hypothesis)."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import Final

from hypothesis import strategies as st

# What reaches this machine, so that a server on it would notice; and what must be refused although nobody is there.
HERE: Final = ("127.0.0.0/8", "0.0.0.0/32")
_ELSEWHERE: Final = (
    *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10", "168.63.129.16/32"),
    *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
    *("224.0.0.0/4", "240.0.0.0/4", "0.0.0.0/8"),
)
_NAMES: Final = ("localhost", "localhost.", "LocalHost", "api.localhost", "LOCALHOST.")
_LITERALS: Final = (
    *("::", "::1", "0:0:0:0:0:0:0:1", "fe80::1", "fc00::1", "fdff::1", "fec0::1", "ff02::1", "2001:db8::1", "3fff::1"),
    *("64:ff9b:1::1", "2001::1", "100::1", "4000::1"),
)
_OTHER_DIGITS: Final = ("０１２３４５６７８９", "⓪①②③④⑤⑥⑦⑧⑨", "𝟎𝟏𝟐𝟑𝟒𝟓𝟔𝟕𝟖𝟗")  # noqa: RUF001 that is the point
_OTHER_DOTS: Final = ("。", "．", "｡")  # noqa: RUF001


def _within(networks: tuple[str, ...]) -> st.SearchStrategy[IPv4Address]:
    ranges = [IPv4Network(network) for network in networks]
    return st.one_of(
        [st.integers(int(one.network_address), int(one.broadcast_address)).map(IPv4Address) for one in ranges]
    )


@st.composite
def _number(draw: st.DrawFn, value: int) -> str:
    """A number as inet_aton reads it: decimal, octal or hexadecimal, with zeros in front of the latter two."""
    zeros = "0" * draw(st.integers(0, 4))
    return draw(st.sampled_from([str(value), f"0{zeros}{value:o}", f"0x{zeros}{value:x}", f"0X{zeros}{value:X}"]))


@st.composite
def _as_numbers(draw: st.DrawFn, address: IPv4Address) -> str:
    """One to four numbers; the last stands for all bytes that are left. Sometimes a dot or two behind."""
    count = draw(st.integers(1, 4))
    packed = address.packed
    values = [*packed[: count - 1], int.from_bytes(packed[count - 1 :])]
    return ".".join(draw(_number(value)) for value in values) + draw(st.sampled_from(["", "", "", ".", ".."]))


@st.composite
def _inside_ipv6(draw: st.DrawFn, address: IPv4Address) -> str:
    """Mapped, compatible, translated (NAT64, SIIT), tunnelled (6to4); short, long, in capitals, with a dotted end."""
    low = int(address)
    outer = draw(
        st.sampled_from(
            [
                (0xFFFF << 32) | low,
                low,
                (0x64FF9B << 96) | low,
                (0x64FF9B0001 << 80) | low,
                (0xFFFF << 48) | low,
                (0x2002 << 112) | (low << 80) | draw(st.integers(0, 2**80 - 1)),
            ]
        )
    )
    written = IPv6Address(outer)
    dotted = f"{written.exploded[:30]}{IPv4Address(outer & 0xFFFF_FFFF)}"
    text = draw(st.sampled_from([written.compressed, written.exploded, dotted]))
    zone = draw(st.sampled_from(["", "", "", "%25lo", "%lo"]))
    return f"[{text.upper() if draw(st.booleans()) else text}{zone}]"


@st.composite
def _in_other_letters(draw: st.DrawFn, address: IPv4Address) -> str:
    """Digits and dots that Unicode normalises to plain ones, or percent-encoded."""
    plain = str(address)
    if draw(st.booleans()):
        return "".join(f"%{ord(one):02x}" if draw(st.booleans()) else one for one in f"{plain}%"[:-1])
    digits, dot = draw(st.sampled_from(_OTHER_DIGITS)), draw(st.sampled_from((".", *_OTHER_DOTS)))
    return "".join(dot if one == "." else digits[int(one)] for one in plain)


def _spelled(address: IPv4Address) -> st.SearchStrategy[str]:
    return st.one_of(st.just(str(address)), _as_numbers(address), _inside_ipv6(address), _in_other_letters(address))


@st.composite
def forbidden_urls(draw: st.DrawFn, *, port: int | None = None) -> str:
    """URLs that lead to an address that is refused when nothing is allowed, however they write it."""
    hosts = st.one_of(
        _within(HERE).flatmap(_spelled),
        _within(_ELSEWHERE).flatmap(_spelled),
        st.sampled_from(_NAMES),
        st.sampled_from(_LITERALS).map(lambda literal: f"[{literal}]"),
    )
    host = draw(hosts)
    before = draw(st.sampled_from(["", "", "", "", "user@", "8.8.8.8@", "hooks.example%40", "hooks.example:443@"]))
    behind = "" if port is None else f":{port}"
    path = draw(st.sampled_from(["", "/", "/hook?x=1", "/@hooks.example/", "?@hooks.example"]))
    return f"{draw(st.sampled_from(['http', 'https', 'HTTP']))}://{before}{host}{behind}{path}"
