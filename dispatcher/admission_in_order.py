"""Admission in order: by one dispatcher at a time, so that each endpoint's deliveries are in the order of the queue.

Several dispatchers that consume one queue admit what they have in hand side by side, so two events of one publisher may
be admitted in either order. With HOOKHARE_ORDERED_ADMISSION only who has the role consumes it. Then events are admitted
for the first time in the order of the queue, which is the order of publish on one channel:

- Every admission is a transaction that shares the role, so none is committed by who has lost it, however long it was
  stopped; and its batches are committed one after the other, each a beginning of what is in hand.
- The next one is handed the oldest message that is not acked, then what comes after it: `Broker`'s "Consuming in
  order". It is handed nothing that comes after what the one before has in hand.
- What was admitted already, and not acked, is known by its key and changes nothing.
- What cannot be admitted by itself is not given back alone, behind the others: all are, and come again in order, until
  the broker takes it for a suspect, and in the end for a dead letter.

It costs the fleet's width: the one that admits makes the first attempts too, as far as its places reach. And it costs
time when it dies: until it is taken for dead, and, over RabbitMQ, its connection for lost, events wait in the broker.

What it does not promise: an order among publishers, or among publishes of one that do not wait for each other. Events
that a publisher has tried again after an error, which may lie behind later ones. The order of a message that came back
so often that it is a suspect, and comes back again (`infra/broker/rabbit_in_order.py`); of what a foreign policy or
a person puts back into the queue; and, over PostgreSQL, of what was published while its clock was set back. The
attribute `sequence` of CloudEvents is not read: it would have to be complete, and a gap in it would hold up all that
follows.
"""

import asyncio

import structlog

from dispatcher.admission import Admission, GivenBack
from dispatcher.roles import Role, RoleLost
from infra.broker.base import Broker, Queue

log = structlog.get_logger(__name__)


async def admit_in_order(admission: Admission, role: Role, broker: Broker, *, prefetch: int) -> None:
    """Admit for ever, whenever the role is ours."""
    try:
        while True:
            await role.take()
            try:
                async with (
                    broker.consume(Queue.EVENTS, prefetch=prefetch, in_order=True) as consumer,
                    asyncio.TaskGroup() as group,
                ):
                    group.create_task(role.watch(), name="watch the role")
                    group.create_task(admission.run(consumer), name="admit in order")
            except* RoleLost:
                log.warning("admission.role_lost")
            except* GivenBack:
                log.warning("admission.given_back")
    finally:  # everything is back in the broker
        await role.give_up()
