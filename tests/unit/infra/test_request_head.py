"""The egress and the API agree on what may be asked of a request. What is sent: tests/integration/egress/."""

import pytest

from infra.egress_rules import EgressRules
from infra.request_head import OWN_HEADERS, Target, header_fault, read_target
from schemas.headers import headers_fault

ANY = EgressRules(http=True, ports=(range(1, 65_536),))


@pytest.mark.parametrize("name", sorted(OWN_HEADERS))
def test_a_subscription_cannot_have_a_header_that_every_delivery_would_fail_on(name: str) -> None:
    assert header_fault(name) is not None
    assert header_fault(name.title()) is not None
    assert headers_fault({name: "x"}) is not None


@pytest.mark.parametrize(
    "name",
    ["authorization", "Cookie", "X-Api-Key", "traceparent", "webhook-id", "webhook-signature", "x!#$%&'*+.^_`|~1"],
)
def test_what_the_dispatcher_and_subscriptions_set_may_be_set(name: str) -> None:
    assert header_fault(name) is None


@pytest.mark.parametrize(
    ("url", "asked", "host"),
    [
        ("http://a.example", "/", "a.example"),
        ("http://a.example?q=1", "/?q=1", "a.example"),
        ("http://A.Example.:80//x?", "//x", "a.example"),
        ("https://a.example:8443/x/../y?z=%2f", "/x/../y?z=%2f", "a.example:8443"),
        ("http://a.example/%0d%0aX:1", "/%0d%0aX:1", "a.example"),
        ("http://[2606:4700::1]:81/h", "/h", "[2606:4700::1]:81"),
    ],
)
async def test_a_head_is_these_lines_and_no_others(url: str, asked: str, host: str) -> None:
    target = read_target(ANY, url)
    assert isinstance(target, Target)
    line, *headers, end, body = target.head({"webhook-id": "evt_1"}, 17).decode().split("\r\n")
    assert (line, end, body) == (f"POST {asked} HTTP/1.1", "", "")
    assert [header for header in headers if not header.startswith("User-Agent: Hookhare/")] == [
        f"Host: {host}",
        "Content-Type: application/json",
        "webhook-id: evt_1",
        "Accept: */*",
        "Accept-Encoding: identity",
        "Content-Length: 17",
    ]


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("Content-Length", "1", "is not the caller's to set"),
        ("a b", "1", "is not a header's name"),
        ("x", "1\r\ny: 2", "has a value that is not printable ASCII"),
        ("x", "ü", "has a value that is not printable ASCII"),
    ],
)
async def test_what_the_caller_may_not_say_is_refused(name: str, value: str, fault: str) -> None:
    target = read_target(ANY, "http://a.example/")
    assert isinstance(target, Target)
    with pytest.raises(ValueError, match=fault):
        target.head({name: value}, 0)


async def test_what_the_caller_accepts_replaces_what_we_would() -> None:
    target = read_target(ANY, "http://a.example/")
    assert isinstance(target, Target)
    head = target.head({"accept-Encoding": "gzip"}, 0).decode()
    assert [line for line in head.split("\r\n") if line.lower().startswith("accept")] == [
        "accept-Encoding: gzip",
        "Accept: */*",
    ]


@pytest.mark.parametrize(
    "url", ["http://./", "http://../", "http://p>_][_0p_'@", "http://a.example:99999/", "http:///x"]
)
async def test_what_no_library_takes_for_a_url_is_said_and_not_raised(url: str) -> None:
    assert not isinstance(read_target(ANY, url), Target)
