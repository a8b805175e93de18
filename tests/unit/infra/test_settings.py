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


def test_each_variable_at_fault_is_named_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_settings(event_bindings=(1, 2), prefetch=0, api_port="x")
    faults = [fault.partition(": ")[0] for fault in str(caught.value).split("; ")]
    assert faults == ["HOOKHARE_EVENT_BINDINGS", "HOOKHARE_PREFETCH", "HOOKHARE_API_PORT"]


def test_variables_that_are_no_setting_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API_PRT", "api_port", "DATABASE_URL", "TEST_AMQP_URL", "RETENTION"):
        monkeypatch.setenv(f"HOOKHARE_{name}", "1")
    assert unknown_variables() == ("HOOKHARE_API_PRT", "HOOKHARE_RETENTION")
