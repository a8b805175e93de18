"""Which addresses a webhook may reach. The same lists through real requests: tests/integration/egress/."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.addresses import forbidden_reason, is_within, refused_host

FORBIDDEN = [
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.255.0.1"),
    *("169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.8", "192.0.2.1", "192.88.99.1", "192.168.1.1"),
    *("198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1"),
    *("255.255.255.255", "168.63.129.16"),
    *("::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:7f00:1", "::ffff:10.0.0.1", "::ffff:169.254.169.254"),
    *("64:ff9b::a9fe:a9fe", "64:ff9b::10.0.0.1", "64:ff9b:1::1", "100::1", "2001::1", "2001:1ff::1", "2001:db8::1"),
    *("2002:a9fe:a9fe::", "2002:808:808::1", "3fff::1", "3fff:fff::1", "4000::1", "fc00::1", "fd12::1", "fe80::1"),
    *("fec0::1", "ff02::1", "ff0e::1", "5f00::1", "1fff::1"),
]
PUBLIC = [
    *("1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.1", "100.63.255.255", "100.128.0.1", "172.15.255.255"),
    *("172.32.0.1", "192.0.1.1", "192.167.255.255", "198.17.255.255", "198.20.0.1", "223.255.255.255"),
    *("168.63.129.15", "168.63.129.17", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2001:200::1", "2606:4700::1111"),
    *("2a00:1450::1", "3ffe::1", "2003::1"),
]


@pytest.mark.parametrize("address", FORBIDDEN)
def test_what_is_not_public_is_refused_with_a_reason_that_names_it(address: str) -> None:
    reason = forbidden_reason(address, ())
    assert reason is not None
    assert reason.startswith(f"{address} is ")


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_not_refused(address: str) -> None:
    assert forbidden_reason(address, ()) is None


@pytest.mark.parametrize("address", ["", "example.com", "127.1", "0x7f.1", "010.0.0.1", "8.8.8.8%1", "fe80::1%eth0"])
def test_what_is_not_a_plain_address_is_refused(address: str) -> None:
    assert forbidden_reason(address, ()) is not None


def test_a_zone_is_refused_even_on_a_public_or_an_allowed_address() -> None:
    assert forbidden_reason("2606:4700::1%eth0", ()) is not None
    assert forbidden_reason("fe80::1%eth0", [IPv6Network("fe80::/10")]) is not None


@pytest.mark.parametrize(
    ("address", "allow", "allowed"),
    [
        ("127.0.0.1", "127.0.0.0/8", True),
        ("::ffff:127.0.0.1", "127.0.0.0/8", True),
        ("64:ff9b::7f00:1", "127.0.0.0/8", True),
        ("10.1.2.3", "10.1.2.0/24", True),
        ("10.1.3.3", "10.1.2.0/24", False),
        ("::1", "127.0.0.0/8", False),
        ("::1", "::1/128", True),
        ("fd00::5", "fd00::/8", True),
        ("127.0.0.1", "::/0", False),
        ("::ffff:127.0.0.1", "::/0", False),  # it is the IPv4 address that packets go to
        ("169.254.169.254", "0.0.0.0/0", True),  # an operator who says so is taken at the word
    ],
)
def test_an_operator_allows_networks(address: str, allow: str, allowed: bool) -> None:
    assert (forbidden_reason(address, [ip_network(allow)]) is None) is allowed


@given(st.integers(0, 2**32 - 1).map(IPv4Address))
def test_an_ipv4_address_in_ipv6_clothing_is_judged_as_itself(address: IPv4Address) -> None:
    refused = forbidden_reason(str(address), ()) is not None
    assert (forbidden_reason(f"::ffff:{address}", ()) is not None) is refused
    assert (forbidden_reason(str(IPv6Address((0x64FF9B << 96) | int(address))), ()) is not None) is refused
    if address.is_private or address.is_multicast or address.is_reserved or address.is_link_local:
        assert refused


@given(st.integers(0, 2**128 - 1).map(IPv6Address))
def test_beyond_global_unicast_there_is_nothing_to_reach(address: IPv6Address) -> None:
    if address in IPv6Network("2000::/3") or address in IPv6Network("64:ff9b::/96") or address.ipv4_mapped:
        return
    assert forbidden_reason(str(address), ()) is not None


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("127.0.0.1", "loopback address; an operator may allow its network with HOOKHARE_EGRESS_ALLOW"),
        ("169.254.169.254", "link-local address, where clouds keep their metadata; an operator may allow"),
        ("::1", "loopback"),
        ("::ffff:a00:1", "private address"),
        ("64:ff9b::a9fe:a9fe", "link-local"),
        ("2002:a9fe:a9fe::", "6to4"),
        ("localhost", "localhost is this machine, and 127.0.0.1 is a loopback address; an operator may allow"),
        ("localhost.", "this machine"),
        ("api.localhost", "this machine"),
        ("127.0.0.1.", "four decimal numbers"),
        ("127.1", "four decimal numbers"),
        ("0x7f.1", "four decimal numbers"),
        ("2130706433", "four decimal numbers"),
        ("017700000001", "four decimal numbers"),
        ("0", "four decimal numbers"),
        ("1.2.3.4.5", "four decimal numbers"),
        ("08.8.8.8", "four decimal numbers"),
    ],
)
def test_a_literal_address_is_judged_as_it_stands(host: str, why: str) -> None:
    reason = refused_host(host, ())
    assert reason is not None
    assert why in reason


@pytest.mark.parametrize("host", ["example.com", "8.8.8.8", "2606:4700::1", "1and1.example", "0x.example"])
def test_names_and_public_addresses_are_not_judged(host: str) -> None:
    assert refused_host(host, ()) is None


@pytest.mark.parametrize("network", ["127.0.0.0/8", "::1/128"])
def test_localhost_is_allowed_with_either_of_its_addresses(network: str) -> None:
    assert refused_host("localhost", [ip_network(network)]) is None


def test_an_allowed_network_allows_no_notation() -> None:
    assert refused_host("127.0.0.1", [IPv4Network("127.0.0.0/8")]) is None
    assert refused_host("127.1", [IPv4Network("127.0.0.0/8")]) is not None


@pytest.mark.parametrize(
    ("host", "network", "within"),
    [
        ("10.1.2.3", "10.0.0.0/8", True),
        ("::ffff:a01:203", "10.0.0.0/8", True),
        ("fd00::1", "fd00::/8", True),
        ("fd00::1", "0.0.0.0/0", False),
        ("10.example", "0.0.0.0/0", False),
    ],
)
def test_whether_a_literal_is_within_a_network(host: str, network: str, within: bool) -> None:
    assert is_within(host, [ip_network(network)]) is within
