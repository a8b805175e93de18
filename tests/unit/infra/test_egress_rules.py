"""What an operator allows, as the API and the egress ask it."""

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.egress_rules import EgressRules, OutboundProxy, read_exceptions, read_ports, read_proxy
from infra.settings import Settings, read_settings
from tests.support.spellings import forbidden_urls

DEFAULTS = EgressRules.from_settings(Settings.model_construct())


@pytest.mark.parametrize(
    "url",
    [
        *(
            "https://hooks.example/",
            "https://hooks.example:8443/h",
            "https://hooks.example:80/",
            "HTTPS://HOOKS.EXAMPLE",
        ),
        *("https://8.8.8.8/", "https://[2606:4700::1]:8080/", "https://xn--bcher-kva.example/"),
    ],
)
def test_what_the_defaults_let_through(url: str) -> None:
    assert DEFAULTS.refusal(url) is None


@pytest.mark.parametrize(
    ("url", "variables"),
    [
        ("http://hooks.example/", {"HTTP"}),
        ("http://hooks.example:81/", {"HTTP", "PORTS"}),
        ("https://hooks.example:22/", {"PORTS"}),
        ("https://hooks.example:444/", {"PORTS"}),
        ("https://10.0.0.1/", {"ALLOW"}),
        ("http://[::1]:9/", {"ALLOW", "HTTP", "PORTS"}),
        ("https://127.1/", set()),  # nobody can allow a notation
        ("https://xn--a.example/", set()),
        ("ftp://hooks.example/", set()),
    ],
)
def test_a_refusal_names_each_variable_that_would_allow_it(url: str, variables: set[str]) -> None:
    refusal = DEFAULTS.refusal(url)
    assert refusal is not None
    assert refusal.startswith("must ")
    named = {name for name in ("ALLOW", "HTTP", "PORTS", "PROXY") if f"HOOKHARE_EGRESS_{name}" in refusal}
    assert named == variables


def test_what_is_allowed_by_these_variables_is_let_through() -> None:
    settings = read_settings(egress_allow="10.0.0.0/8,::1/128", egress_http=True, egress_ports="22, 440-450")
    rules = EgressRules.from_settings(settings)
    for url in ("http://10.1.2.3:22/", "https://10.1.2.3:440/", "https://[::1]/", "http://localhost:450/"):
        assert rules.refusal(url) is None
    for url in ("http://10.1.2.3/", "https://10.1.2.3:451/", "https://11.0.0.1:80/", "https://192.168.0.1/"):
        assert rules.refusal(url) is not None


@given(url=forbidden_urls())
def test_no_spelling_of_a_forbidden_address_passes(url: str) -> None:
    assert EgressRules(http=True, ports=(range(1, 65_536),)).refusal(url) is not None


@given(url=st.text() | st.from_regex(r"https?://[ -~]{0,30}", fullmatch=True))
def test_any_text_is_judged_and_never_raised(url: str) -> None:
    refusal = DEFAULTS.refusal(url)
    assert refusal is None or refusal.startswith("must ")


def test_ports_are_read() -> None:
    assert read_ports(" 443, 8443 ,10000-10100,") == (range(443, 444), range(8443, 8444), range(10000, 10101))
    assert read_ports("1-65535") == (range(1, 65_536),)


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("http://proxy.internal:3128", OutboundProxy("proxy.internal", 3128)),
        ("http://10.0.0.1:8080/", OutboundProxy("10.0.0.1", 8080)),
        ("http://[fd00::1]:8080", OutboundProxy("fd00::1", 8080)),
        ("http://u:p%40ss@p:1", OutboundProxy("p", 1, "Basic dTpwQHNz")),
        ("http://token@p:1", OutboundProxy("p", 1, "Basic dG9rZW46")),
    ],
)
def test_proxies_are_read(url: str, proxy: OutboundProxy) -> None:
    assert read_proxy(url) == proxy


@pytest.mark.parametrize(
    ("host", "direct"),
    [
        ("hooks.example", True),
        ("hooks.example.", True),
        ("www.hooks.example", False),
        ("xhooks.example", False),
        ("a.internal", True),
        ("a.b.internal", True),
        ("internal", False),
        ("ainternal", False),
        ("10.1.2.3", True),
        ("11.1.2.3", False),
        ("::ffff:a01:203", True),
        ("fd00::5", True),
        ("other.example", False),
    ],
)
def test_exceptions_are_names_suffixes_and_networks(host: str, direct: bool) -> None:
    proxy = OutboundProxy("proxy.example", 3128)
    exceptions = read_exceptions(("Hooks.example", ".internal", "10.0.0.0/8", "fd00::/8"))
    rules = EgressRules(proxy=proxy, direct=exceptions)
    assert rules.proxy_for(host) == (None if direct else proxy)
    assert EgressRules(direct=exceptions).proxy_for(host) is None


def test_an_allowed_network_is_no_exception_from_the_proxy() -> None:
    rules = EgressRules(allow=(ip_network("10.0.0.0/8"),), proxy=OutboundProxy("p", 1))
    assert rules.proxy_for("10.0.0.1") == OutboundProxy("p", 1)
