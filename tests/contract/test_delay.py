"""The contract's part "Delay"."""

import time

from infra.broker.base import Broker, Outgoing, Queue, ToWorkAfter
from schemas.messages import Message
from tests.contract.steps import publish, receive

DELAYS_S = (3.0, 1.5, 0.0, 1.0)


async def test_a_delayed_message_is_never_early_seldom_late_and_waits_for_no_other(broker: Broker) -> None:
    """The longest is sent first, so that it would be ahead of the others if they shared a queue."""
    async with broker.consume(Queue.WORK, prefetch=10) as consumer:
        sent: dict[str, float] = {}
        for delay_s in DELAYS_S:
            sent[str(delay_s)] = time.monotonic()
            await publish(broker, Outgoing(ToWorkAfter(delay_s), Message(str(delay_s).encode())))
        took: dict[float, float] = {}
        while len(took) < len(DELAYS_S):
            for item in await receive(consumer):
                took[float(item.message.body)] = time.monotonic() - sent[item.message.body.decode()]
                await consumer.ack([item])
    for delay_s, took_s in took.items():
        assert delay_s <= took_s <= 1.19 * max(delay_s, 1) + 1, took  # no delay is shorter than a second
    assert list(took)[-2:] == [1.5, 3.0]
