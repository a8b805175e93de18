"""The egress and the API agree on what may be asked of a request. What is sent: tests/integration/egress/."""

import pytest

from infra.request_head import OWN_HEADERS, header_fault
from schemas.subscriptions import headers_fault


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
