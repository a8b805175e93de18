"""What one transaction writes is bounded, however much waits: events with their deliveries, and outcomes."""

from producer.events import NewEvent
from tests.support.receivers import Receiver
from tests.support.system import Api, System

EVENTS, ROWS = 100, 5
# Rows that one transaction inserted bear its number.
MOST = "SELECT max(number) FROM (SELECT count(*) AS number FROM {} GROUP BY xmin) AS transactions"


async def test_no_transaction_writes_more_rows_than_it_may(system: System, api: Api, receiver: Receiver) -> None:
    """All events are there before the dispatcher is, and a single endpoint answers them as they come."""
    await api.subscribe(receiver.url("/hook"))
    async with system.publisher() as publisher, system.broker():
        await publisher.publish_many(NewEvent("order.created", {"n": number}) for number in range(EVENTS))
    async with system.dispatcher(batch_rows=ROWS):
        await system.settled({"delivered": EVENTS}, deadline_s=60)
    assert await system.value(MOST.format("events")) == ROWS
    assert 1 <= await system.value(MOST.format("attempts")) <= ROWS
