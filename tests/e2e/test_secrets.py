"""An encryption key that is lost holds, but loses nothing. That no secret is told: test_canaries.py."""

from infra.crypto import new_key
from tests.support.receivers import Receiver
from tests.support.system import Api, System
from tests.support.waiting import eventually


async def test_a_subscription_that_cannot_be_decrypted_is_held_with_that_reason(
    system: System, api: Api, receiver: Receiver
) -> None:
    await api.subscribe(receiver.url("/hook"))
    async with system.publisher() as publisher:
        async with system.dispatcher(encryption_keys=new_key()):
            await publisher.publish("order.created", {"n": 1})

            async def held() -> bool:
                reason = await system.value("SELECT reason FROM deliveries WHERE status = 'held'")
                return reason is not None and "cannot be decrypted" in reason

            await eventually(held)
        assert not receiver.requests
        async with system.dispatcher():
            await system.settled({"delivered": 1})
