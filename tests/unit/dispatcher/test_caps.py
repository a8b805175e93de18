"""What is known of an endpoint's POSTs under way: nothing is left of one that was not sent."""

from uuid_utils.compat import uuid7

from dispatcher.caps import Caps


async def test_what_was_withdrawn_says_nothing() -> None:
    caps, subscription, first, second = Caps(most_at_once=4), uuid7(), uuid7(), uuid7()
    caps.began(subscription, first)
    caps.began(subscription, second)
    caps.withdrawn(subscription, first)
    assert len(caps) == 1
    caps.withdrawn(subscription, second)
    assert len(caps) == 0
    assert caps.cap(subscription, "https://example.com/", share=10) is None
