"""What is said of variables that are wrong, and of those that are no setting."""

import os
from ipaddress import ip_network

import pytest

from infra.settings import read_settings, unknown_variables
from schemas.errors import ConfigurationError


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("HOOKHARE_"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize("networks", ["foo", "foo,bar", "10.0.0.0/8,10.0.0.1/8", "::1/129", "10"])
def test_networks_that_are_none_are_said_once_and_in_our_words(networks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOKHARE_EGRESS_ALLOW", networks)
    with pytest.raises(ConfigurationError) as caught:
        read_settings()
    assert str(caught.value) == "HOOKHARE_EGRESS_ALLOW: must be networks in CIDR form, as 10.0.0.0/8"


def test_networks_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOKHARE_EGRESS_ALLOW", " 10.0.0.0/8, ::1/128,")
    networks = (ip_network("10.0.0.0/8"), ip_network("::1/128"))
    assert read_settings().egress_allow == networks
    assert read_settings(egress_allow=networks).egress_allow == networks


PORTS = "HOOKHARE_EGRESS_PORTS: must be ports and ranges of them, as 443,10000-10100"
PROXY = "HOOKHARE_EGRESS_PROXY: must be http://host:port or http://user:password@host:port"
EXCEPTIONS = (
    "HOOKHARE_EGRESS_NO_PROXY: must be host names, .suffixes of names and CIDRs, as hooks.example,.internal,10.0.0.0/8"
)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        *(
            ("egress_ports", one, PORTS)
            for one in ("0", "65536", "x", "443-", "-443", "9-8", "1-2-3", ",", "٤٤٣", "+1")
        ),
        *(
            ("egress_proxy", f"{one}", PROXY)
            for one in (
                *("proxy", "proxy:3128", "https://proxy:3128", "socks5://proxy:1080", "http://proxy", "http://:3128"),
                *(
                    "http://u:hunter2@proxy",
                    "http://u:hunter2@proxy:x",
                    "http://u:hunter2@proxy:1/hunter2",
                    "http://[::1",
                ),
                *("http://127.1:3128", "http://u:hunter2@proxy:1?x", "http://pröxy:3128", "http://a b:1"),
            )
        ),
        *(
            ("egress_no_proxy", one, EXCEPTIONS)
            for one in ("*", "a b", "http://a", "a:80", "a/b", "10.0.0.1/8", "bücher.de")
        ),
    ],
)
def test_egress_settings_that_are_wrong_are_told_without_their_value(
    name: str, value: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"HOOKHARE_{name.upper()}", value)
    with pytest.raises(ConfigurationError) as caught:
        read_settings()
    assert str(caught.value) == told


def test_each_variable_at_fault_is_named_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_settings(event_bindings=(1, 2), prefetch=0, api_port="x")
    faults = [fault.partition(": ")[0] for fault in str(caught.value).split("; ")]
    assert faults == ["HOOKHARE_EVENT_BINDINGS", "HOOKHARE_PREFETCH", "HOOKHARE_API_PORT"]


def test_variables_that_are_no_setting_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API_PRT", "api_port", "DATABASE_URL", "TEST_AMQP_URL", "RETENTION"):
        monkeypatch.setenv(f"HOOKHARE_{name}", "1")
    assert unknown_variables() == ("HOOKHARE_API_PRT", "HOOKHARE_RETENTION")
