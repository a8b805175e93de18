"""The broker loses everything: what was admitted is finished all the same."""

import asyncio

from tests.support.rabbitmq import delete_topology
from tests.support.receivers import Behaviour, Receiver
from tests.support.system import Api, System
from tests.support.waiting import eventually


async def wipe(system: System) -> None:
    if system.broker_url.startswith("amqp"):
        await delete_topology(system.broker_url)
    else:
        await system.fetch("DELETE FROM queue_messages")


async def test_pending_held_and_retrying_deliveries_are_finished_and_new_events_flow(
    system: System, api: Api, receiver: Receiver
) -> None:
    answers = asyncio.Event()
    await api.subscribe(receiver.behave("/retries", Behaviour(fail_first=10)), retry_policy={"delays_s": [6.0] * 5})
    await api.subscribe(receiver.behave("/held", Behaviour(hold=answers)), "order.#", timeout_s=60)
    async with system.dispatcher(max_in_hand=80, reconcile_grace_s=1) as dispatcher:
        async with system.publisher() as publisher:
            for number in range(10):
                await publisher.publish("order.created", {"n": number})

            async def in_every_state() -> bool:
                statuses = await system.statuses()
                return statuses.get("retrying") == 10 and statuses.get("held", 0) + statuses.get("pending", 0) == 10

            await eventually(in_every_state, system.statuses)
        await wipe(system)
        answers.set()
        await system.settled({"delivered": 20}, deadline_s=60)
        # Publishing goes on too, once a dispatcher has declared the queues again.
        async with system.publisher() as publisher:
            await publisher.publish("order.created", {"n": "after"})
        await system.settled({"delivered": 22}, deadline_s=30)
        assert not dispatcher.failed.done()
    assert len(receiver.to("/retries")) == 21
    assert len(receiver.to("/held")) == 11
