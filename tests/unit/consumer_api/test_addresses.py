"""Where a request comes from, and what is counted together."""

from ipaddress import ip_network

import pytest

from consumer_api.addresses import caller_address, neighbourhood

TRUSTED = [ip_network("10.0.0.0/8"), ip_network("2001:db8:1::/48")]


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("203.0.113.9", [], "203.0.113.9"),
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),  # who is not trusted may say what it likes
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        (
            "10.0.0.1",
            ["192.0.2.66, 198.51.100.1"],
            "198.51.100.1",
        ),  # the first was said by the second, who is not trusted
        ("10.0.0.1", ["192.0.2.66", "198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1, 10.0.0.2"], "198.51.100.1"),  # a chain of trusted ones
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", ["198.51.100.1, nonsense"], "10.0.0.1"),
        ("10.0.0.1", ["", "unknown", " "], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1:4711"], "198.51.100.1"),
        ("10.0.0.1", ["[2001:db8:2::7]:4711"], "2001:db8:2::7"),
        ("10.0.0.1", ["2001:DB8:2:0::7"], "2001:db8:2::7"),
        ("2001:db8:1::1", ["198.51.100.1"], "198.51.100.1"),
        ("::ffff:10.0.0.1", ["::ffff:198.51.100.1"], "198.51.100.1"),
        ("fe80::1%eth0", [], "fe80::1"),
        (None, ["198.51.100.1"], "unknown"),
        ("", ["198.51.100.1"], "unknown"),
    ],
)
def test_a_caller_is_where_its_connection_is_or_what_a_trusted_proxy_says(
    peer: str | None, forwarded: list[str], address: str
) -> None:
    assert caller_address(peer, forwarded, TRUSTED) == address


def test_without_trusted_proxies_nobody_is_believed() -> None:
    assert caller_address("10.0.0.1", ["198.51.100.1"], []) == "10.0.0.1"


def test_a_chain_is_read_for_twenty_hops() -> None:
    assert caller_address("10.0.0.1", [", ".join(["198.51.100.1", *["10.0.0.2"] * 5_000])], TRUSTED) == "10.0.0.2"


def test_addresses_of_one_ipv6_network_are_counted_together_and_those_of_ipv4_are_not() -> None:
    assert neighbourhood("2001:db8:2:3:4::7") == neighbourhood("2001:db8:2:3:ffff::1") == "2001:db8:2:3::/64"
    assert neighbourhood("2001:db8:2:4::7") != neighbourhood("2001:db8:2:3::7")
    assert neighbourhood("198.51.100.1") == "198.51.100.1"
    assert neighbourhood("unknown") == "unknown"
