"""One endpoint's trouble is its own."""

from tests.support.receivers import Behaviour, Receiver
from tests.support.system import Api, System


async def test_an_endpoint_that_hangs_does_not_keep_the_others_waiting(
    system: System, api: Api, receiver: Receiver
) -> None:
    """Its backlog is far more than a dispatcher may have in hand, and every one of its POSTs hangs."""
    await api.subscribe(receiver.behave("/hangs", Behaviour(delay_s=60)), "flood", timeout_s=60)
    await api.subscribe(receiver.url("/well"), "well")
    async with system.dispatcher(max_in_hand=320, drain_s=0.1), system.publisher() as publisher:
        for number in range(1000):
            await publisher.publish("flood", {"n": number})
        for number in range(50):
            await publisher.publish("well", {"n": number})
        await receiver.wait_for(50, path="/well", deadline_s=30)
        assert await system.value("SELECT count(*) FROM deliveries WHERE status = 'held'") >= 900
        claimed = "SELECT count(*) FROM deliveries WHERE claimed_by IS NOT NULL AND event_type = 'flood'"
        in_hand = await system.value(claimed)
        assert in_hand <= 320 // 16 + 1


async def test_a_siblings_failure_never_repeats_what_is_delivered(system: System, api: Api, receiver: Receiver) -> None:
    for path in ("/a", "/b", "/c"):
        await api.subscribe(receiver.url(path))
    await api.subscribe(receiver.behave("/bad", Behaviour(status=500)), retry_policy={"delays_s": [0.5, 0.5]})
    async with system.dispatcher(), system.publisher() as publisher:
        for number in range(20):
            await publisher.publish("order.created", {"n": number})
        await system.settled({"delivered": 60, "dead": 20})
    assert [len(receiver.to(path)) for path in ("/a", "/b", "/c", "/bad")] == [20, 20, 20, 60]
