"""What the development server lets webhooks do, and what its user has said otherwise."""

from hookhare.dev import dev_settings
from infra.egress_rules import EgressRules
from infra.settings import read_settings


def test_a_receiver_under_development_is_reached_without_being_asked_for() -> None:
    rules = EgressRules.from_settings(dev_settings(read_settings(egress_proxy="http://proxy.example:3128")))
    for host in ("127.0.0.1", "localhost", "[::1]"):
        assert rules.refusal(f"http://{host}:3000/hook") is None
    assert [rules.proxy_for(host) for host in ("127.0.0.1", "localhost", "::1")] == [None] * 3
    assert rules.proxy_for("hooks.example") is not None
    assert rules.refusal("http://10.0.0.1/") is not None


def test_what_its_user_sets_stays() -> None:
    settings = read_settings(egress_http=False, egress_ports="443", egress_allow="10.0.0.0/8")
    rules = EgressRules.from_settings(dev_settings(settings))
    assert rules.refusal("https://10.0.0.1/") is None
    assert rules.refusal("http://127.0.0.1/") is not None
    assert rules.refusal("https://127.0.0.1:3000/") is not None
